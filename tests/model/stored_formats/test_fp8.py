"""FP8 with scales: the shapes that scales may have, and those that look as if they were one for each row."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402


def weight(rows: int = 6, columns: int = 8, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    values = torch.arange(rows * columns, dtype=torch.float32).sub(20).div(3)
    return values.reshape(rows, columns).to(dtype)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("name", ["weight_scale", "scale_weight"])
def test_scales(shape, dtype, name, stored) -> None:
    scale = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 7
    read = stored({"weight": weight(dtype=dtype), name: scale})
    expected = weight(dtype=dtype).float() * scale.reshape(-1, 1)
    assert read.shape == (6, 8)
    assert torch.equal(read.read(), expected)


@pytest.mark.parametrize("shape", [(16, 16), (1, 256), (256, 256), (2,), (1, 1, 1), (255,), (2, 128), (0,)])
def test_scales_of_blocks_are_refused(shape, stored) -> None:
    """256 rows with 16×16 scales: as many as one for each row."""
    with pytest.raises(KontextError, match=r"m.weight_scale is F32 .* expected .*\[256\] or \[256, 1\]"):
        stored({"weight": weight(256, 256), "weight_scale": torch.ones(shape)})


FAULTS = {
    "no scale": ({"weight": weight()}, "float8_e4m3fn", "m.weight_scale is missing"),
    "another format": (
        {"weight": weight(), "weight_scale": torch.ones(())},
        "float8_e5m2",
        "is F8_E4M3 .*expected a matrix in F8_E5M2 for float8_e5m2",
    ),
    "bf16": (
        {"weight": torch.ones(6, 8, dtype=torch.bfloat16), "weight_scale": torch.ones(())},
        None,
        r"weight_scale belongs to a quantized weight, but m.weight is BF16 \[6, 8\]",
    ),
    "two scales": (
        {"weight": weight(), "weight_scale": torch.ones(()), "scale_weight": torch.ones(())},
        None,
        "m.weight_scale is a second scale",
    ),
    "another's tensor": (
        {"weight": weight(), "weight_scale": torch.ones(()), "weight_scale_2": torch.ones(())},
        "float8_e4m3fn",
        "weight_scale_2 does not belong to float8_e4m3fn",
    ),
    "no weight": (
        {"weight_scale": torch.ones(())},
        None,
        "m.weight_scale belongs to m.weight, which is missing",
    ),
    "blocks of activations": (
        {"weight": weight(), "weight_scale": torch.ones(()), "input_scale": torch.ones(8)},
        None,
        r"m.input_scale is F32 \[8\]",
    ),
    "integers as scale": (
        {"weight": weight(), "weight_scale": torch.ones((), dtype=torch.uint8)},
        None,
        r"m.weight_scale is U8 \[\], expected F32 or F16 or BF16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, stored) -> None:
    tensors, format, message = FAULTS[fault]
    with pytest.raises(KontextError, match=message):
        stored(tensors, format)
