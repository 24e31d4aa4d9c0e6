"""What is done to a traced graph: functions inlined, constants folded, duplicates merged, names made plain.

The stock optimizer is not used: on a fake trace it folds weights that are not there, and it is quadratic at 12 B.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir

LARGEST_FOLD = 1 << 14
"""Elements; larger results of folding would be stored instead of computed."""


@contextlib.contextmanager
def weights_as_inputs(model: ir.Model, restore: bool = True) -> Iterator[None]:
    """As inputs, weights are opaque to every pass: nothing folds, merges or renames values that are not there."""
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
    """Makes the shape of every Reshape a constant where the trace knows enough; 0 there means «as in the input».

    The tracer computes [batch, tokens, 64] with Shape, Slice and Concat nodes; [0, 0, 64] says the same. Only for a
    graph as it was traced: its dimensions' names mean nothing in another.
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
    """Inlines, folds and merges, in place; constants stay nodes."""
    common.InlinePass()(model)
    for _ in range(2):  # the second time folds what the first one made constant
        fold_constants_ir(model, input_size_limit=LARGEST_FOLD, output_size_limit=LARGEST_FOLD)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)


def optimize(model: ir.Model) -> None:
    """All there is to do to a whole graph, in place. Initializers keep their names."""
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
    # Stack traces of the tracer, with this machine's paths in them.
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            output.meta.clear()
