"""NF4 as bitsandbytes stores it, held against bitsandbytes itself."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.export.layouts import bitsandbytes as layout  # noqa: E402
from kontext.quant.formats.nf4 import NF4  # noqa: E402


def test_the_tensors_are_its_own() -> None:
    """Of a weight that it quantizes itself: the same bytes, and its own note reads the same."""
    theirs = pytest.importorskip("bitsandbytes")
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(1)) * 0.1
    codes, state = theirs.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    expected = state.as_dict(packed=True)
    own, absmax = NF4.quantize(weight.t(), torch.float32)
    assert torch.equal(own.reshape(-1, 1), codes)
    assert torch.equal(absmax.reshape(-1), expected["absmax"])
    assert torch.equal(NF4.code_values(torch.device("cpu")), expected["quant_map"])
    note = layout.state((6, 128), "float32")
    read = theirs.functional.QuantState.from_dict(
        {
            "absmax": expected["absmax"],
            "quant_map": expected["quant_map"],
            layout.STATE: torch.frombuffer(bytearray(note), dtype=torch.uint8),
        },
        torch.device("cpu"),
    )
    assert (read.shape, read.dtype, read.blocksize) == (state.shape, state.dtype, state.blocksize)
    shapes = {name.removeprefix("w"): shape for name, _, shape in layout.entries("w", (6, 128), "float32")}
    assert shapes[""] == tuple(codes.shape)
    assert shapes[".absmax"] == tuple(expected["absmax"].shape)
    assert shapes[f".{layout.STATE}"] == (len(note),)
    assert len(note) % 8 == 0


@pytest.mark.parametrize(
    ("entry", "module", "expected"),
    [
        ("proj_out", "proj_out", True),
        ("proj_out", "single_transformer_blocks.0.proj_out", True),
        ("norm_out.linear", "single_transformer_blocks.0.norm.linear", False),
        ("x_embedder", "context_embedder", False),
        ("time_text_embed", "time_text_embed.text_embedder.linear_1", True),
    ],
)
def test_what_the_list_leaves_out_is_what_diffusers_does(entry: str, module: str, expected: bool) -> None:
    pytest.importorskip("bitsandbytes")
    utils = pytest.importorskip("diffusers.quantizers.bitsandbytes.utils")
    from diffusers import BitsAndBytesConfig

    model = torch.nn.Module()
    inner = model
    *path, last = module.split(".")
    for name in path:
        inner.add_module(name, torch.nn.Module())
        inner = getattr(inner, name)
    inner.add_module(last, torch.nn.Linear(2, 2))
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[entry])
    utils.replace_with_bnb_linear(model, [entry], quantization_config=config)
    assert (type(model.get_submodule(module)) is torch.nn.Linear) is expected
    assert layout.skips(entry, module) is expected
