"""INT8: ComfyUI's, by comfy-kitchen's formula (dequantize_int8_simple: q × scale), and bitsandbytes'."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402

CODES = (torch.arange(48).mul(37) % 255 - 127).reshape(6, 8).to(torch.int8)
ROWS = torch.arange(1, 7).float()[:, None] / 9


@pytest.mark.parametrize("scale", [ROWS, ROWS[:, 0], torch.tensor(0.25), torch.tensor([0.25])])
def test_int8_tensorwise(scale, stored) -> None:
    read = stored({"weight": CODES, "weight_scale": scale}, "int8_tensorwise")
    assert (read.shape, read.dtype) == ((6, 8), "I8 scaled")
    assert torch.equal(read.read(), CODES.float() * scale.reshape(-1, 1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"convrot": True, "convrot_groupsize": 256},
            "says convrot, INT8 of rotated weights, which is not read",
        ),
        ({"params": {"convrot": True}}, "says convrot"),
        ({"convrot_groupsize": 256}, "unknown key 'convrot_groupsize'"),
        ({"per_row": False}, r"has per_row False, but m.weight_scale is \[6, 1\]"),
        ({"per_row": 1}, "has per_row 1, expected True or False"),
    ],
)
def test_notes(keys, message, stored) -> None:
    with pytest.raises(KontextError, match=message):
        stored({"weight": CODES, "weight_scale": ROWS}, {"format": "int8_tensorwise", **keys})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight_scale": torch.ones(2, 3)}, r"m.weight_scale is F32 \[2, 3\]"),
        ({}, "m.weight_scale is missing"),
        ({"weight": CODES.float(), "weight_scale": ROWS}, "m.weight is F32 .* expected a matrix in I8"),
    ],
)
def test_faults(tensors, message, stored) -> None:
    with pytest.raises(KontextError, match=message):
        stored({"weight": CODES, **tensors}, "int8_tensorwise")


def test_bitsandbytes(stored) -> None:
    """Against its own dequantization on the CPU."""
    bnb = pytest.importorskip("bitsandbytes")
    largest = torch.arange(1, 7).float()
    read = stored({"weight": CODES, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)})
    assert (read.shape, read.dtype) == ((6, 8), "bitsandbytes INT8")
    expected = bnb.functional.int8_vectorwise_dequant(CODES, largest)
    torch.testing.assert_close(read.read(), expected, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"SCB": torch.ones(6), "weight_format": torch.tensor(1, dtype=torch.uint8)},
            "is 1, expected 0: tiled",
        ),
        ({"weight_format": torch.tensor(0, dtype=torch.uint8)}, "m.SCB is missing"),
        ({"SCB": torch.ones(8)}, r"m.SCB is F32 \[8\], expected F32 \[6\]"),
        ({"SCB": torch.ones(6), "weight_scale": ROWS}, "weight_scale does not belong to bitsandbytes' INT8"),
    ],
)
def test_faults_of_bitsandbytes(tensors, message, stored) -> None:
    with pytest.raises(KontextError, match=message):
        stored({"weight": CODES, **tensors})
