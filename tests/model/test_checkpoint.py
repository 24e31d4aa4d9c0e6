"""Checkpoints as users have them, complete and damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, load_state  # noqa: E402

from .damaged_folders import CLIP, T5, TRANSFORMER, VAE, edit_json, edit_tensors, same  # noqa: E402


def test_opening_reads_no_weight(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontext.model.safetensors_file.TensorInfo.read", lambda self: pytest.fail("read"))
    assert Checkpoint.open(folder).parameters() == 497_259


def test_the_identity_changes_with_any_weight_file(folder: Path) -> None:
    before = Checkpoint.open(folder).identity()
    assert before == Checkpoint.open(folder).identity()
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.utime(file, ns=(1, 1))
    after = Checkpoint.open(folder).identity()
    assert [path for path in before if before[path] != after[path]] == [str(file.absolute())]


def test_other_spellings_of_the_text_encoders(folder: Path, tiny_checkpoint: Path) -> None:
    def respell_clip(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("text_model.")] = tensors.pop(name)
        tensors["embeddings.position_ids"] = torch.arange(77)

    def respell_t5(tensors: dict) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")

    edit_tensors(folder / CLIP, respell_clip)
    edit_tensors(folder / T5, respell_t5)
    assert same(load_state(folder), load_state(tiny_checkpoint))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: shutil.rmtree(f), "does not exist"),
    "layers wrong": (
        lambda f: edit_json(f / "transformer/config.json", num_layers=2),
        "lacks tensor transformer_blocks.1",
    ),
    "fewer layers": (
        lambda f: edit_json(f / "transformer/config.json", num_single_layers=1),
        "single_transformer_blocks.1.*does not belong to FluxTransformer2DModel",
    ),
    "truncated": (lambda f: truncate(f / TRANSFORMER), "is truncated"),
    "missing tensor": (
        lambda f: edit_tensors(f / TRANSFORMER, lambda t: t.pop("x_embedder.weight")),
        "lacks tensor x_embedder.weight",
    ),
    "unknown tensor": (
        lambda f: edit_tensors(f / VAE, lambda t: t.update(quant_conv=torch.ones(1))),
        "quant_conv does not belong to AutoencoderKL",
    ),
    "wrong shape": (
        lambda f: edit_tensors(
            f / TRANSFORMER, lambda t: t.update({"x_embedder.weight": torch.ones(64, 63)})
        ),
        r"x_embedder.weight \[64, 63\] does not fit the model's sizes, expected \[64, 64\]",
    ),
    "wrong part": (
        lambda f: edit_tensors(
            f / TRANSFORMER, lambda t: t.update({"transformer_blocks.0.attn.to_k.bias": torch.ones(65)})
        ),
        r"to_k.bias \[65\]",
    ),
    "a scalar": (
        lambda f: edit_tensors(f / VAE, lambda t: t.update({"encoder.conv_in.bias": torch.tensor(1.0)})),
        "does not fit",
    ),
    "whole numbers": (
        lambda f: edit_tensors(f / T5, lambda t: t.update({"shared.weight": t["shared.weight"].int()})),
        "shared.weight is I32, expected a float format",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_clear_error(folder: Path, fault: str) -> None:
    break_it, message = FAULTS[fault]
    break_it(folder)
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_damaged_numbers_show_when_read(folder: Path, value: float) -> None:
    def damage(tensors: dict) -> None:
        tensors["transformer_blocks.0.attn.to_k.weight"][3, 4] = value

    edit_tensors(folder / TRANSFORMER, damage)
    network = Checkpoint.open(folder).networks["transformer"]
    network.read("double_blocks.0.img_attn.proj.weight")
    with pytest.raises(KontextError, match="NaN or infinity"):
        network.read("double_blocks.0.img_attn.qkv.weight")
