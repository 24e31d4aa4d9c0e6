"""Checkpoints as users have them, complete and damaged."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin, load_state  # noqa: E402

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


def test_single_files_of_everything_still_need_tokenizers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes as small as these are not inferred: they are given."""
    config = Checkpoint.open(tiny_checkpoint).config
    monkeypatch.setattr("kontext.model.checkpoint.find_config", lambda *_: config)
    parts = {"transformer": TRANSFORMER, "vae": VAE, "text_encoder": CLIP, "text_encoder_2": T5}
    files = {
        name: Path(shutil.copy(tiny_checkpoint / file, tmp_path / f"{name}.safetensors"))
        for name, file in parts.items()
    }
    model = files.pop("transformer")
    with pytest.raises(
        KontextError, match=f"^{model} has no tokenizers: add --base FOLDER, a diffusers folder"
    ):
        Checkpoint.open(Origin(model, files))
    opened = Checkpoint.open(Origin(model, files, base=tiny_checkpoint))
    assert opened.tokenizers == tiny_checkpoint
    assert set(opened.files) == {model, *files.values()}


def test_a_file_beside_a_folder_that_lacks_its_component(folder: Path, tmp_path: Path) -> None:
    """Its sizes are inferred, as beside a single file; the tokenizer's limit is kept."""
    expected = Checkpoint.open(folder).config.text_encoder_2
    file = Path(shutil.move(folder / T5, tmp_path / "t5.safetensors"))
    shutil.rmtree(folder / "text_encoder_2")
    assert Checkpoint.open(Origin(folder, {"text_encoder_2": file})).config.text_encoder_2 == expected
    shutil.move(folder / TRANSFORMER, tmp_path / "flux.safetensors")
    single = Origin(tmp_path / "flux.safetensors", {"text_encoder_2": file}, folder)
    assert Checkpoint.open(single).config.text_encoder_2 == expected
    edit_json(folder / "tokenizer_2/tokenizer_config.json", model_max_length=19)
    assert Checkpoint.open(single).config.text_encoder_2.max_length == 19


def test_the_steps_are_those_asked_for_or_the_last_few_step_loras(folder: Path, tmp_path: Path) -> None:
    factors = {
        "transformer.x_embedder.lora_A.weight": torch.ones(1, 64),
        "transformer.x_embedder.lora_B.weight": torch.ones(64, 1),
    }
    files = []
    for name in ("eight", "four", "style"):
        files.append((tmp_path / f"{name}.safetensors", 1.0))
        titles = {"eight": "Turbo 8-step", "four": "Turbo 4-step", "style": "Ink"}
        save_file(factors, files[-1][0], {"modelspec.title": titles[name]})
    own = Checkpoint.open(folder).config.sampler.steps
    assert own not in (4, 5, 8)
    eight, four = (f"{name}.safetensors: its modelspec.title {titles[name]}" for name in ("eight", "four"))
    for loras, steps, expected, source in (
        (files[:1], None, 8, eight),
        (files, None, 4, four),
        (files[::-1], None, 8, eight),
        (files[2:], None, own, "the model"),
        (files, 5, 5, "--steps"),
        ([], 5, 5, "--steps"),
    ):
        opened = Checkpoint.open(Origin(folder, loras=loras, steps=steps))
        assert opened.config.sampler.steps == expected
        assert opened.steps_source == source
        assert set(opened.files) >= {path for path, _ in loras}


def test_loras_are_fused_when_a_weight_is_read(folder: Path, tmp_path: Path) -> None:
    """In fp32 and in this order; other weights stay as they are."""
    path = tmp_path / "a.safetensors"
    save_file({"diffusion_model.txt_in.diff": torch.full((64, 48), 2.0)}, path)
    before = load_file(folder / TRANSFORMER)["context_embedder.weight"]
    network = Checkpoint.open(Origin(folder, loras=[(path, 0.5), (path, 1.0)])).networks["transformer"]
    assert torch.equal(network.read("txt_in.weight"), before + 1 + 2)
    assert torch.equal(network.read("img_in.weight"), load_file(folder / TRANSFORMER)["x_embedder.weight"])


def test_the_length_of_prompts(folder: Path) -> None:
    own = Checkpoint.open(folder).config
    asked = Checkpoint.open(Origin(folder, max_sequence_length=512)).config
    assert own.text_encoder_2.max_length == 24
    assert asked.text_encoder_2 == dataclasses.replace(own.text_encoder_2, max_length=512)
    for tokens in (1, 513):
        with pytest.raises(KontextError, match=f"a prompt may have 2 to 512 tokens, not {tokens}"):
            Checkpoint.open(Origin(folder, max_sequence_length=tokens))


def test_only_what_was_given_of_an_origin_is_recorded() -> None:
    model = Path("/x/flux.safetensors")
    assert Origin(model).record() == {"model": "flux.safetensors"}
    origin = Origin(model, {"vae": Path("/x/ae.safetensors")}, Path("/y/dev"), variant="fp16")
    expected = {"model": "flux.safetensors", "base": "dev", "vae": "ae.safetensors", "variant": "fp16"}
    assert origin.record() == expected
    assert Origin(model, title="the embedded model").record() == {"model": "the embedded model"}
