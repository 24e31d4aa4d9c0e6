"""Passes over a traced graph: inlines functions, folds constants, merges duplicates, shortens names.

onnxscript's own optimizer is not used: it folds weights that have no values yet, and takes quadratic time, too much for
12 billion parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir

MAX_FOLDED = 1 << 14
"""Elements of a folded result; larger results stay computed, which takes less space than storing them."""


@contextlib.contextmanager
def weights_as_inputs(model: ir.Model, restore: bool = True) -> Iterator[None]:
    """Turns weights into graph inputs, so that no pass folds, merges or renames them: they have no values yet."""
    graph = model.graph
    weights, inputs = dict(graph.initializers), len(graph.inputs)
    for name, value in weights.items():
        value.const_value = None
        del graph.initializers[name]
        graph.inputs.append(value)
    yield
    if restore:
        for _ in weights:
            graph.inputs.pop(inputs)
        for name, value in weights.items():
            value.name = name
            graph.initializers[name] = value


def literal_reshapes(graph: ir.Graph) -> None:
    """Makes the shape of every Reshape a constant, if the trace determines it; 0 means "as in the input".

    The tracer computes [batch, tokens, 64] with Shape, Slice and Concat nodes; [0, 0, 64] means the same. Only valid
    directly after tracing, because names of dimensions have no meaning in another graph.
    """
    for node in list(graph):
        data, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Reshape" or data is None or data.shape is None or result.shape is None:
            continue
        literal: list[int] = []
        for axis, size in enumerate(result.shape):
            if isinstance(size, int):
                literal.append(size)
            elif (
                axis < len(data.shape) and not isinstance(data.shape[axis], int) and data.shape[axis] == size
            ):
                literal.append(0)
            else:
                literal.append(-1)
        if literal.count(-1) > 1 or 0 in [size for size in result.shape if isinstance(size, int)]:
            continue
        constant = ir.node("Constant", [], attributes={"value_ints": literal}, name=f"{node.name}/shape")
        constant.outputs[0].name = f"{result.name}_shape"
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        node.attributes.pop("allowzero", None)


def simplify(model: ir.Model) -> None:
    """Inlines, folds and merges in place; constants remain nodes."""
    common.InlinePass()(model)
    for _ in range(2):  # the second pass folds what became constant in the first
        fold_constants_ir(model, input_size_limit=MAX_FOLDED, output_size_limit=MAX_FOLDED)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)


def optimize(model: ir.Model) -> None:
    """Applies all passes to a whole graph, in place. Initializers keep their names."""
    with weights_as_inputs(model):
        simplify(model)
        ir.passes.Sequential(
            common.RemoveUnusedFunctionsPass(),
            common.RemoveUnusedOpsetsPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
            common.TopologicalSortPass(),
        )(model)
    # The tracer's stack traces hold paths of this machine.
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            output.meta.clear()
