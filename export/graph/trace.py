"""One ONNX graph for each of the six networks, traced with no weights in memory.

`trace` returns an onnx_ir model whose initializers are named as the weights and have no data yet: `binding`
adds it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ...model.config import KontextConfig
from ...model.dtypes import COMPUTE_DTYPES
from ...model.networks import build_network
from ...model.text_encoders import relative_buckets
from . import blocks
from .passes import literal_reshapes, optimize

OPSET = 23
"""Attention, RMSNormalization and RotaryEmbedding are single operators from 23 on; 26 and up break
silently."""

BATCH = 2
"""Rows of the example: a batch of one would be traced as a constant."""


class InputMajorLinear(nn.Module):
    """A linear whose weight is [in, out], so that the graph is a MatMul with no Transpose for a quantizer to
    trip on."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(linear.in_features, linear.out_features))
        self.bias = nn.Parameter(torch.empty(linear.out_features)) if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class Float32Boundary(nn.Module):
    """Casts a network's float inputs to its own format and its outputs to fp32, so that every graph speaks
    fp32.

    `wide` inputs stay in fp32: timestep, guidance and the RoPE tables lose too much in half precision.
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


@dataclass(frozen=True)
class Signature:
    """A graph's inputs and outputs: name → shape, where a string is a dimension that varies.

    An example size comes from `sizes`; a dimension called `8*latent_height` is 8 times the size of
    `latent_height`.
    """

    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    wide: tuple[str, ...] = ()
    integers: bool = False


def signature(name: str, config: KontextConfig) -> Signature:
    """What the graph of a network takes and gives; the bundle's contract with every runtime."""
    transformer, latents = config.transformer, config.autoencoder.latent_channels
    hidden, half_head = transformer.hidden_size, transformer.head_dim // 2
    text = (config.text_encoder_2.max_length, transformer.text_dim)
    modulations: dict[str, tuple[int, ...]] = {
        "double_modulation": (transformer.num_double_blocks, 2, 6, hidden),
        "single_modulation": (transformer.num_single_blocks, 3, hidden),
        "final_modulation": (2, hidden),
    }
    tokens = "text_tokens + target_tokens + reference_tokens"
    if name == "text_encoder":
        ids = {"input_ids": ("batch", config.text_encoder.max_length)}
        return Signature(ids, {"pooled": ("batch", config.text_encoder.hidden_size)}, integers=True)
    if name == "text_encoder_2":
        return Signature({"input_ids": ("batch", text[0])}, {"text": ("batch", *text)}, integers=True)
    if name in ("vae_encoder", "vae_decoder"):
        scale = config.autoencoder.downscale
        image = ("batch", 3, f"{scale}*latent_height", f"{scale}*latent_width")
        latent = ("batch", latents, "latent_height", "latent_width")
        if name == "vae_encoder":
            return Signature({"image": image}, {"latents": latent})
        return Signature({"latents": latent}, {"image": image})
    if name == "modulation":
        return Signature(
            {"timestep": ("rows",), "guidance": ("rows",), "pooled": ("rows", transformer.pooled_dim)},
            {key: ("rows", *shape) for key, shape in modulations.items()},
            wide=("timestep", "guidance"),
        )
    if name == "transformer":
        channels = transformer.in_channels
        return Signature(
            {
                "target": ("batch", "target_tokens", channels),
                "reference": ("batch", "reference_tokens", channels),
                "text": ("batch", *text),
                "rope_cos": (tokens, half_head),
                "rope_sin": (tokens, half_head),
                **{key: ("batch", *shape) for key, shape in modulations.items()},
            },
            {"velocity": ("batch", "target_tokens", channels)},
            wide=("rope_cos", "rope_sin"),
        )
    raise ValueError(f"no graph is called {name!r}")


def trace(name: str, config: KontextConfig, compute: str) -> ir.Model:
    """The graph of network `name`, computing in `compute` ("fp32", "fp16" or "bf16").

    Linear weights are [in, out]; initializers carry the weights' own names, shapes and formats, and no
    values.
    """
    dtype, shapes = COMPUTE_DTYPES[compute], signature(name, config)
    wide = [key in shapes.wide for key in shapes.inputs]
    with default_dtype(dtype), FakeTensorMode(), quiet():
        network = build_network(name, config)
        replace_linears(network)
        network.eval().requires_grad_(False)
        definitions = blocks.replace_repeated(
            network,
            blocks.repeated_blocks(name, config),
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
        example_dtype = torch.int64 if shapes.integers else torch.float32
        model = to_onnx(
            Float32Boundary(network, dtype, wide),
            {key: (shape, example_dtype) for key, shape in shapes.inputs.items()},
            list(shapes.outputs),
            config,
        )
    blocks.inline(model, definitions)
    rename_weights(model)
    optimize(model)
    set_interface(model, name, shapes)
    return model


def to_onnx(
    module: nn.Module,
    inputs: Mapping[str, tuple[tuple[int | str, ...], torch.dtype]],
    outputs: list[str],
    config: KontextConfig,
) -> ir.Model:
    """The graph of a module by PyTorch's exporter. `inputs`: name → shape and number format."""
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


def linear_weights(name: str, config: KontextConfig) -> set[str]:
    """Names of the weights that a bundle stores as [in, out]."""
    with torch.device("meta"):
        network = build_network(name, config)
    return {f"{path}.weight" for path, module in network.named_modules() if isinstance(module, nn.Linear)}


def constants(name: str, config: KontextConfig) -> dict[str, Tensor]:
    """Tables of a network that no checkpoint holds: T5's buckets of every pair of positions."""
    if name != "text_encoder_2":
        return {}
    t5 = config.text_encoder_2
    return {"buckets": relative_buckets(t5.max_length, t5.relative_buckets, t5.relative_max_distance)}


def example_size(dimension: int | str, config: KontextConfig) -> int:
    """Example sizes are all different, so that the tracer takes no two dimensions for one."""
    if isinstance(dimension, int):
        return dimension
    sizes = {
        "batch": BATCH,
        "rows": BATCH,
        "target_tokens": 24,
        "reference_tokens": 20,
        "latent_height": 4,
        "latent_width": 6,
        "text_tokens": config.text_encoder_2.max_length,
    }
    if "*" in dimension:
        factor, name = dimension.split("*")
        return int(factor) * sizes[name]
    return sum(sizes[part] for part in dimension.split(" + "))


def dynamic_shapes(module: nn.Module, shapes: Sequence[tuple[int | str, ...]]) -> tuple[object, ...]:
    axes = tuple(dynamic_axes(shape) for shape in shapes)
    return (axes,) if isinstance(module, Float32Boundary) else axes  # its inputs are one *inputs


def dynamic_axes(shape: Sequence[int | str]) -> dict[int, object]:
    """Which axes vary. A picture's sides are multiples of the downscale; about the others the tracer finds
    out."""
    result: dict[int, object] = {}
    for axis, dimension in enumerate(shape):
        if isinstance(dimension, str):
            factor, _, name = dimension.rpartition("*")
            result[axis] = int(factor) * torch.export.Dim(name, min=1) if factor else torch.export.Dim.DYNAMIC
    return result


def rename_weights(model: ir.Model) -> None:
    """Drops the wrapper's prefix from the initializers."""
    for value in list(model.graph.initializers.values()):
        if value.name is not None and value.name.startswith("network."):
            value.name = value.name.removeprefix("network.")


def set_interface(model: ir.Model, name: str, shapes: Signature) -> None:
    """Gives inputs and outputs the contract's shapes, and takes away all that tells of the machine it was
    traced on."""
    for values, expected in ((model.graph.inputs, shapes.inputs), (model.graph.outputs, shapes.outputs)):
        if [value.name for value in values] != list(expected):
            raise RuntimeError(f"the graph of {name} came out with {[value.name for value in values]}")
        for value, shape in zip(values, expected.values(), strict=True):
            value.shape = ir.Shape(shape)
    model.graph.name = name
    model.producer_name, model.producer_version = "kontext-export", None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """`.to(dtype)` fails under FakeTensorMode, so modules are built in their format."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter's notices (torchvision is missing, a name is shared) are of no use to whoever exports a
    model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
