"""What is done to a traced graph: functions inlined, constants folded, duplicates merged, names made plain.

The stock optimizer is not used: under a fake trace it folds weights that are not there, and it is quadratic
at 12 B.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir

LARGEST_FOLD = 1 << 14
"""Elements; larger results of folding would be stored instead of computed."""


def optimize(model: ir.Model) -> None:
    """Optimizes in place. Initializers keep their names, and none of their (absent) values is looked at."""
    graph = model.graph
    weights = dict(graph.initializers)
    inputs = len(graph.inputs)
    # As inputs, weights are opaque to every pass: nothing folds, merges or renames them.
    for name, value in weights.items():
        value.const_value = None
        del graph.initializers[name]
        graph.inputs.append(value)
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    common.InlinePass()(model)
    for _ in range(2):  # the second time folds what the first one made constant
        fold_constants_ir(model, input_size_limit=LARGEST_FOLD, output_size_limit=LARGEST_FOLD)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.TopologicalSortPass(),
    )(model)
    for _ in weights:
        graph.inputs.pop(inputs)
    for name, value in weights.items():
        value.name = name
        graph.initializers[name] = value
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
            output.meta.clear()
