"""Traces one ONNX graph for each of the six networks, with no weights in memory.

`trace_network` returns an onnx_ir model whose initializers have the weights' names and no data yet; `bind_weights`
gives each its place in a file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ...model.config import KontextConfig
from ...model.dtypes import COMPUTE_DTYPES
from . import blocks
from .forms import form_of
from .interface import OPSET, Interface
from .passes import literal_reshapes, optimize
from .pipeline_networks import MODULATION

BATCH = 2
"""Rows of the example input: the tracer would take a batch of one for a constant."""


def trace_network(network: str, config: KontextConfig, compute: str) -> ir.Model:
    """The graph of `network`, a key of `NETWORKS` or `PIPELINE_GRAPHS`, computing in `compute` ("fp32", "fp16" or
    "bf16").

    Weights of linears are [in, out]. Initializers have the weights' names, shapes and formats, and no values.
    """
    dtype = COMPUTE_DTYPES[compute]
    with default_dtype(dtype), FakeTensorMode(), quiet():
        form = form_of(network, config)
        module, interface = form.module, form.interface
        wide = [key in interface.wide for key in interface.inputs]
        replace_linears(module)
        module.eval().requires_grad_(False)
        definitions = blocks.replace_repeated(
            module,
            form.blocks,
            lambda block, kind: to_onnx(
                block,
                {
                    key: (shape, torch.float32 if key in kind.wide else dtype)
                    for key, shape in kind.inputs.items()
                },
                [f"output_{index}" for index in range(kind.outputs)],
                config,
            ),
        )
        example_dtype = torch.int64 if interface.integers else torch.float32
        model = to_onnx(
            Float32Boundary(module, dtype, wide),
            {key: (shape, example_dtype) for key, shape in interface.inputs.items()},
            list(interface.outputs),
            config,
        )
    blocks.add_definitions(model, definitions)
    rename_weights(model)
    optimize(model)
    set_interface(model, network, interface)
    return model


class InputMajorLinear(nn.Module):
    """A linear whose weight is [in, out]: its graph is a MatMul without the Transpose that quantizers cannot handle."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(linear.in_features, linear.out_features))
        self.bias = nn.Parameter(torch.empty(linear.out_features)) if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class Float32Boundary(nn.Module):
    """Casts a network's float inputs to the format that it computes in, and its outputs to fp32.

    `wide` inputs stay fp32: half precision is too coarse for timestep, guidance and RoPE tables.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, wide: Sequence[bool]) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.wide = wide

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(
            *(
                value.to(self.dtype) if value.is_floating_point() and not wide else value
                for value, wide in zip(inputs, self.wide, strict=True)
            )
        )
        return tuple(output.float() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))


def to_onnx(
    module: nn.Module,
    inputs: Mapping[str, tuple[tuple[int | str, ...], torch.dtype]],
    outputs: list[str],
    config: KontextConfig,
) -> ir.Model:
    """The graph of a module, by PyTorch's exporter. `inputs`: name → shape and number format."""
    program = torch.onnx.export(
        module,
        tuple(
            torch.empty([example_size(dimension, config) for dimension in shape], dtype=dtype)
            for shape, dtype in inputs.values()
        ),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=dynamic_shapes(module, [shape for shape, _ in inputs.values()]),
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no graph of {type(module).__name__}")
    literal_reshapes(program.model.graph)
    return program.model


def replace_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, InputMajorLinear(child))
        else:
            replace_linears(child)


def example_size(dimension: int | str, config: KontextConfig) -> int:
    """The size of a dimension in the example inputs. All differ, so that the tracer takes no two dimensions for one."""
    if isinstance(dimension, int):
        return dimension
    sizes = {
        "batch": BATCH,
        "batch_size": BATCH,
        "rows": BATCH,
        "target_tokens": 24,
        "reference_tokens": 20,
        "packed_height_width": 24,
        "latent_height": 4,
        "latent_width": 6,
        "text_tokens": config.text_encoder_2.max_length,
        "sequence_length": 11,
    }
    if "*" in dimension:
        factor, name = dimension.split("*")
        return int(factor) * sizes[name]
    return sum(sizes[part] for part in dimension.split(" + "))


def dynamic_shapes(module: nn.Module, shapes: Sequence[tuple[int | str, ...]]) -> tuple[object, ...]:
    axes = tuple(dynamic_axes(shape) for shape in shapes)
    return (axes,) if isinstance(module, Float32Boundary) else axes  # its inputs are one *inputs


def dynamic_axes(shape: Sequence[int | str]) -> dict[int, object]:
    """The axes that vary. A picture's sides are multiples of the downscale; the tracer infers the others."""
    result: dict[int, object] = {}
    for axis, dimension in enumerate(shape):
        if isinstance(dimension, str):
            factor, _, name = dimension.rpartition("*")
            result[axis] = int(factor) * torch.export.Dim(name, min=1) if factor else torch.export.Dim.DYNAMIC
    return result


def rename_weights(model: ir.Model) -> None:
    """Removes the prefixes of wrapping modules from the initializers' names."""
    for value in list(model.graph.initializers.values()):
        if value.name is not None and value.name.startswith("network."):
            value.name = value.name.removeprefix("network.").removeprefix(MODULATION)


def set_interface(model: ir.Model, network: str, interface: Interface) -> None:
    """Sets the shapes of inputs and outputs, and removes everything that depends on the machine that traced."""
    for values, expected in (
        (model.graph.inputs, interface.inputs),
        (model.graph.outputs, interface.outputs),
    ):
        if [value.name for value in values] != list(expected):
            raise RuntimeError(f"the graph of {network} was traced with {[value.name for value in values]}")
        for value, shape in zip(values, expected.values(), strict=True):
            value.shape = ir.Shape([interface.labels.get(str(size), size) for size in shape])
    model.graph.name = network
    model.producer_name, model.producer_version = "kontext-export", None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Builds modules in `dtype`, since `.to(dtype)` fails under FakeTensorMode."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the exporter's notices (torchvision is missing, a name is shared), which are useless to users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
