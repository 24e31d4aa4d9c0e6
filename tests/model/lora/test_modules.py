"""Every kind of update against the merges of PEFT 0.21.2 and LyCORIS 4.1.3, which made golden.json.

golden.json holds, for a linear of 6×8 whose weight is `wave([6, 8], 1)`: the names of the tensors that PEFT's
save_pretrained wrote (LyCORIS's state_dict), each filled with `wave(shape, start)`; PEFT's adapter_config.json or
LyCORIS's alpha; the adapter's weight (PEFT's set_scale, LyCORIS's multiplier); and the weight after PEFT's
merge_and_unload, or the matrix of LyCORIS's forward. (Its get_merged_weight applies alpha twice to LoKr and LoHa.)
The alpha of LoKr's full matrices is replaced by that which ai-toolkit writes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.lora import update  # noqa: E402
from kontext.model.lora.deltas import find_delta  # noqa: E402
from kontext.model.lora.modules import (  # noqa: E402
    LoraModule,
    check_kind,
    module_fit,
    module_updates,
)
from kontext.model.lora.names import split_name  # noqa: E402
from kontext.model.lora.settings import read_settings  # noqa: E402
from kontext.model.lora.targets import TargetRows  # noqa: E402
from kontext.model.safetensors_file import open_safetensors  # noqa: E402

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text())
SHAPES = {"transformer": {"lin.weight": (6, 8), "lin.bias": (6,)}}


def wave(shape: list[int], start: int) -> Tensor:
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(start + 0.7 * numbers).reshape(shape).float()


def merge(
    path: Path,
    tensors: dict[str, Tensor],
    weight: float = 1.0,
    base: Tensor | None = None,
    targets: tuple[slice, ...] = (slice(0, 6),),
) -> Tensor:
    """The weight [6, 8] after the adapter, whose settings are beside `path`."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    file = open_safetensors(path)
    check_kind(path, file.tensors)
    settings = read_settings(path, {}, ("transformer",), "x.alpha" in tensors)
    assert settings.notes == ()
    roles = {split[1]: info for name, info in file.tensors.items() if (split := split_name(name))}
    module = LoraModule(
        "transformer", "lin", roles, tuple(TargetRows("transformer", "lin.weight", rows) for rows in targets)
    )
    merged = wave([6, 8], 1) if base is None else base.clone()
    fit = module_fit(path, module, SHAPES)
    delta = find_delta(module.tensors, fit)
    for _, _, change in module_updates(module, delta, fit, weight, settings.components["transformer"]):
        change.apply_to(merged)
    return merged


@pytest.mark.parametrize("chunk", [update.CHUNK, 16])
@pytest.mark.parametrize("name", GOLDEN)
def test_merges_of_peft_and_lycoris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    case = GOLDEN[name]
    monkeypatch.setattr(update, "CHUNK", chunk)
    tensors = {key: wave(*value) for key, value in case["tensors"].items()}
    if "alpha" in case:
        tensors["x.alpha"] = torch.tensor(case["alpha"])
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps(case["config"]))
    merged = merge(tmp_path / "adapter_model.safetensors", tensors, case["weight"])
    torch.testing.assert_close(merged, torch.tensor(case["merged"]).reshape(6, 8), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("LyCORIS")])
def test_rows_in_another_order(tmp_path: Path, name: str) -> None:
    """A module whose rows are exchanged halves of the native weight, as the final layer's modulation in diffusers."""
    case = GOLDEN[name]
    tensors = {key: wave(*value) for key, value in case["tensors"].items()}
    tensors["x.alpha"] = torch.tensor(case["alpha"])
    base = wave([6, 8], 1).roll(3, 0)
    merged = merge(tmp_path / "a.safetensors", tensors, case["weight"], base, (slice(3, 6), slice(0, 3)))
    torch.testing.assert_close(
        merged.roll(3, 0), torch.tensor(case["merged"]).reshape(6, 8), rtol=1e-5, atol=3e-6
    )


def test_a_scalar_multiplies_and_a_magnitude_may_be_flat(tmp_path: Path) -> None:
    """Files of LyCORIS before 2.0 hold the scalar that its forward multiplies by; later ones have it in the factors."""
    factors = {"x.lokr_w1": wave([2, 2], 2), "x.lokr_w2": wave([3, 4], 3)}
    merged = merge(tmp_path / "a.safetensors", factors | {"x.scalar": torch.tensor(0.25)})
    expected = wave([6, 8], 1) + 0.25 * torch.kron(factors["x.lokr_w1"], factors["x.lokr_w2"])
    torch.testing.assert_close(merged, expected)
    low = {"x.lora_down.weight": wave([2, 8], 2), "x.lora_up.weight": wave([6, 2], 3)}
    flat, column = (
        merge(tmp_path / "b.safetensors", low | {"x.dora_scale": wave([6], 4).reshape(shape)})
        for shape in ((6,), (6, 1))
    )
    assert torch.equal(flat, column)


@pytest.mark.parametrize("shape", [[6, 1], [1, 8]], ids=["rows", "columns"])
def test_the_weight_of_a_dora(tmp_path: Path, shape: list[int]) -> None:
    """A part of the way from the weight to the DoRA, as in ComfyUI; in float64."""
    tensors = low_rank() | {"x.dora_scale": wave(shape, 4), "x.alpha": torch.tensor(3.0)}
    base = wave([6, 8], 1).double()
    total = base + 1.5 * tensors["x.lora_up.weight"].double() @ tensors["x.lora_down.weight"].double()
    full = tensors["x.dora_scale"].double() * total / total.norm(dim=shape.index(1), keepdim=True)
    merged = merge(tmp_path / "a.safetensors", tensors, 0.7)
    torch.testing.assert_close(merged.double(), base + 0.7 * (full - base), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merge(tmp_path / "a.safetensors", tensors, 0.0), base.float())


def test_replaced_weights(tmp_path: Path) -> None:
    """ComfyUI's set_weight and PEFT's modules_to_save take no notice of the adapter's weight."""
    new = wave([6, 8], 5)
    assert torch.equal(merge(tmp_path / "a.safetensors", {"x.set_weight": new}, 0.3), new)


def low_rank(rank: int = 2) -> dict[str, Tensor]:
    return {"x.lora_down.weight": wave([rank, 8], 2), "x.lora_up.weight": wave([6, rank], 3)}


FAULTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "LoKr without w2": ({"x.lokr_w1": wave([2, 2], 1)}, "x.lokr_w1 has no lokr_w2: the file is incomplete"),
    "LoKr, half of w2": (
        {"x.lokr_w1": wave([2, 2], 1), "x.lokr_w2_a": wave([3, 1], 1)},
        "x.lokr_w2_a has no lokr_w2_b",
    ),
    "LoKr, w1 twice": (
        {"x.lokr_w1": wave([2, 2], 1), "x.lokr_w1_a": wave([2, 1], 1), "x.lokr_w2": wave([3, 4], 1)},
        "holds lokr_w1 twice",
    ),
    "LoKr of another shape": (
        {"x.lokr_w1": wave([2, 2], 1), "x.lokr_w2": wave([3, 3], 1)},
        r"x.lokr_w2 is \[3, 3\], but lin.weight \[6, 8\] differs from the product with x.lokr_w1, \[6, 6\]",
    ),
    "LoKr of two ranks": (
        {"x.lokr_w1": wave([2, 2], 1), "x.lokr_w2_a": wave([3, 2], 1), "x.lokr_w2_b": wave([1, 4], 1)},
        r"x.lokr_w2_a is \[3, 2\].*needs \[3, 1\]",
    ),
    "LoKr of a convolution": (
        {"x.lokr_w1": wave([2, 2], 1), "x.lokr_w2": wave([3, 4, 3, 3], 1)},
        "convolutions",
    ),
    "LoHa, one factor": ({"x.hada_w1_a": wave([6, 2], 1)}, "x.hada_w1_a has no hada_w1_b"),
    "LoHa of another shape": (
        {f"x.hada_w{i}_{end}": wave([5, 2] if end == "a" else [2, 8], 1) for i in (1, 2) for end in "ab"},
        r"hada_w1_a is \[5, 2\].*needs \[6, 2\]",
    ),
    "LoHa of rank 0": (
        {f"x.hada_w{i}_{end}": torch.ones([6, 0] if end == "a" else [0, 8]) for i in (1, 2) for end in "ab"},
        "rank 0",
    ),
    "two kinds": (
        low_rank() | {"x.lokr_w1": wave([2, 2], 1)},
        "holds two updates of one weight: x.lokr_w1 and x.lora_down.weight",
    ),
    "DoRA alone": ({"x.dora_scale": wave([6, 1], 1)}, "x.dora_scale has no lora_A"),
    "DoRA of another shape": (
        low_rank() | {"x.dora_scale": wave([1, 6], 1)},
        r"dora_scale is \[1, 6\].*needs \[1, 8\]",
    ),
    "DoRA of another height": (low_rank() | {"x.lora_magnitude_vector": wave([8], 1)}, r"needs \[6\]"),
    "a vector for a scalar": (low_rank() | {"x.scalar": wave([2], 1)}, r"x.scalar has shape \[2\]"),
    "OFT": ({"x.oft_blocks": wave([2, 4, 4], 1)}, "is an OFT .*not supported"),
    "IA3": ({"x.ia3_l": wave([8], 1)}, "is an IA3 .*not supported"),
    "GLoRA": ({"x.a1.weight": wave([2, 8], 1)}, "is a GLoRA .*not supported"),
    "scaled FP8": (low_rank() | {"x.lora_up.scale_weight": wave([1], 1)}, "scaled FP8 factors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_clear_error(tmp_path: Path, fault: str) -> None:
    tensors, message = FAULTS[fault]
    with pytest.raises(KontextError, match=message) as caught:
        merge(tmp_path / "a.safetensors", tensors)
    assert str(tmp_path / "a.safetensors") in str(caught.value)


def test_a_dora_without_its_magnitudes(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(GOLDEN["PEFT DoRA"]["config"]))
    tensors = {name.replace("x.", "base_model.model.lin."): tensor for name, tensor in low_rank(3).items()}
    with pytest.raises(
        KontextError, match=r"has no lora_magnitude_vector, but adapter_config.json says use_dora"
    ):
        merge(tmp_path / "adapter_model.safetensors", tensors)
