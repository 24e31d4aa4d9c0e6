"""`--to bfl`: the names that Black Forest Labs' code reads, held against diffusers' reader and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.export.cli.main import main  # noqa: E402
from kontext.model.checkpoint import load_state  # noqa: E402


def to_bfl(checkpoint: Path, output: Path, *flags: object) -> Path:
    words = [checkpoint, "--to", "bfl", "-o", output, "--quiet", *flags]
    assert main([str(word) for word in words]) == 0
    return output


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_the_file_holds_the_native_weights(tiny_checkpoint: Path, tmp_path: Path, compute: str) -> None:
    stored = load_file(to_bfl(tiny_checkpoint, tmp_path / "x.safetensors", f"--{compute}"))
    state = load_state(tiny_checkpoint)
    expected = {**state["modulation"], **state["transformer"]}
    assert stored.keys() == expected.keys()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
    assert all(torch.equal(stored[name], tensor.to(dtype)) for name, tensor in expected.items())


def test_diffusers_reads_the_same_network(
    tiny_checkpoint: Path, tmp_path: Path, small_converter: Callable[[int], None]
) -> None:
    """Through its own converter of Black Forest Labs' files, which swaps the final layer's modulation back."""
    diffusers = pytest.importorskip("diffusers")
    path = to_bfl(tiny_checkpoint, tmp_path / "x.safetensors", "--fp32")
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(tiny_checkpoint, subfolder="transformer")
    small_converter(theirs.inner_dim)
    # Its sizes are those of the configuration where one is given.
    read = diffusers.FluxTransformer2DModel.from_single_file(
        str(path), config=str(tiny_checkpoint), subfolder="transformer", torch_dtype=torch.float32
    )
    assert read.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def test_a_bundle_of_it_is_the_models(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, untraced
) -> None:  # type: ignore[no-untyped-def]
    """MODEL → bfl → bundle: every file has the same digest, and the manifest differs in its source and name alone."""
    path = to_bfl(tiny_checkpoint, tmp_path / "x.safetensors", "--fp32")
    again = tmp_path / "bundle"
    words = [
        path,
        "--base",
        tiny_checkpoint,
        "-o",
        again,
        "--fp32",
        "--quiet",
        "--name",
        tiny_name(tiny_bundle),
    ]
    with untraced(tiny_bundle):
        assert main([str(word) for word in words]) == 0
    ours, expected = (json.loads((each / "manifest.json").read_text()) for each in (again, tiny_bundle))
    assert ours.pop("source") == {"model": "x.safetensors", "base": tiny_checkpoint.name}
    expected.pop("source")
    assert ours == expected


def tiny_name(bundle: Path) -> str:
    return str(json.loads((bundle / "manifest.json").read_text())["model"]["name"])


def test_a_file_of_the_transformer_alone_is_enough(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without tokenizers, text encoders and an autoencoder; the file comes back byte for byte. diffusers, which needs
    them, is refused."""
    first = to_bfl(tiny_checkpoint, tmp_path / "first.safetensors", "--fp32")
    second = to_bfl(first, tmp_path / "second.safetensors", "--fp32")
    assert second.read_bytes() == first.read_bytes()
    assert main([str(first), "--to", "diffusers", "-o", str(tmp_path / "folder")]) == 2
    assert "first.safetensors lacks CLIP, T5, the autoencoder: name" in capsys.readouterr().err


def test_a_lora_of_clip_matches_nothing_of_such_a_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, lora = (
        to_bfl(tiny_checkpoint, tmp_path / "first.safetensors"),
        clip_lora(tiny_checkpoint, tmp_path),
    )
    words = [first, "--lora", lora, "--to", "bfl", "-o", tmp_path / "x.safetensors"]
    assert main([str(word) for word in words]) == 2
    assert "none of its tensors matches this one" in capsys.readouterr().err


def test_a_lora_of_clip_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = clip_lora(tiny_checkpoint, tmp_path)
    words = [tiny_checkpoint, "--lora", lora, "--to", "bfl", "-o", tmp_path / "x.safetensors"]
    assert main([str(word) for word in words]) == 2
    assert capsys.readouterr().err == (
        f"error: {lora} changes CLIP, and --to bfl holds nothing but the transformer: leave the LoRA out, or choose "
        "another layout\n"
    )
    assert not list(tmp_path.glob("x*"))


def clip_lora(checkpoint: Path, folder: Path) -> Path:
    """A LoRA that changes CLIP alone."""
    lora = folder / "clip.safetensors"
    module = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    weight = load_state(checkpoint)["text_encoder"]["text_model.encoder.layers.0.mlp.fc1.weight"]
    rows, columns = weight.shape
    save_file(
        {
            f"{module}.lora_down.weight": torch.ones(2, columns),
            f"{module}.lora_up.weight": torch.ones(rows, 2),
        },
        lora,
    )
    return lora
