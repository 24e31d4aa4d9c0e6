"""Exports from every kind of checkpoint: the same model gives the same bundle, whatever files it came in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.export.cli import main  # noqa: E402
from kontext.model.checkpoint import load_state  # noqa: E402
from kontext.model.diffusers_config import read_config  # noqa: E402
from kontext.model.diffusers_folder import save_diffusers  # noqa: E402

pytestmark = pytest.mark.usefixtures("fast_trace")

QKV = "transformer_blocks.0.attn.to_k"


def export(output: Path, *arguments: object) -> dict:
    """The manifest of an export in fp32 under the random checkpoint's name."""
    words = [*map(str, arguments), "-o", str(output), "--fp32", "--quiet", "--name", "kontext-random"]
    assert main.main(words) == 0
    return json.loads((output / "manifest.json").read_text())


@pytest.fixture
def native(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The transformer in Black Forest Labs' layout."""
    state = load_state(tiny_checkpoint)
    save_file({**state["modulation"], **state["transformer"]}, tmp_path / "flux.safetensors")
    return tmp_path / "flux.safetensors"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(4)
    tensors = {
        f"transformer.{QKV}.lora_A.weight": torch.randn(4, 64, generator=generator),
        f"transformer.{QKV}.lora_B.weight": torch.randn(64, 4, generator=generator),
        f"transformer.{QKV}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "Hyper-8steps-lora.safetensors")
    return tmp_path / "Hyper-8steps-lora.safetensors"


def test_every_layout_gives_the_same_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, native: Path, tmp_path: Path
) -> None:
    expected = json.loads((tiny_bundle / "manifest.json").read_text())
    assert expected.pop("source") == {"model": tiny_checkpoint.name}
    theirs = load_file(tiny_checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    save_file({f"transformer.{name}": t for name, t in theirs.items()}, tmp_path / "one.safetensors")
    comfy = {f"model.diffusion_model.{name}": t for name, t in load_file(native).items()}
    save_file(comfy, tmp_path / "comfy.safetensors")
    for number, path in enumerate((native, tmp_path / "one.safetensors", tmp_path / "comfy.safetensors")):
        manifest = export(tmp_path / f"out{number}", path, "--base", tiny_checkpoint)
        assert manifest.pop("source") == {"model": path.name, "base": tiny_checkpoint.name}
        assert manifest == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["{bundle}", "-o", "{out}"],
            "{bundle} is a bundle: export again from its checkpoint (recorded: checkpoint)",
        ),
        (["{bundle}"], "{bundle} is a bundle: export again from its checkpoint (recorded: checkpoint)"),
        (
            ["{bundle}", "--fit", "1GB", "--plan-only"],
            "{bundle} is a bundle: export again from its checkpoint",
        ),
        (
            ["sensitivity", "{bundle}", "-o", "{out}"],
            "{bundle} is a bundle: export again from its checkpoint",
        ),
        (
            ["{weights}", "-o", "{out}"],
            "{weights} is a file of the bundle {bundle}: export again from its checkpoint",
        ),
        (
            ["{model}", "--vae", "{weights}", "-o", "{out}"],
            "the bundle {bundle}: --vae takes a part of a checkpoint",
        ),
        (
            ["{weights}", "--base", "{bundle}", "-o", "{out}"],
            "is a file of the bundle {bundle}: export again",
        ),
        (["{model}", "--lora", "{bundle}", "-o", "{out}"], "{bundle} is a bundle: --lora takes a part of a"),
    ],
)
def test_a_bundle_is_no_checkpoint(
    words: list[str],
    message: str,
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"bundle": tiny_bundle, "model": tiny_checkpoint, "out": tmp_path / "out"}
    names["weights"] = tiny_bundle / "weights" / "transformer.safetensors"
    assert main.main([word.format(**names) for word in words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message.format(**names) in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_lora_gives_the_bundle_of_the_merged_model(
    tiny_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    state, factors = load_state(tiny_checkpoint), load_file(lora)
    weight = state["transformer"]["double_blocks.0.img_attn.qkv.weight"]
    down, up = (factors[f"transformer.{QKV}.lora_{part}.weight"] for part in "AB")
    weight[64:128].addmm_(up, down, alpha=0.5 * 2 / 4)  # weight x alpha / rank, on the rows of k
    config = read_config(tiny_checkpoint)
    save_diffusers(tmp_path / "merged", config, state)
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / "merged" / name).symlink_to(tiny_checkpoint / name)
    expected = export(tmp_path / "from-merged", tmp_path / "merged")
    found = export(tmp_path / "fused", tiny_checkpoint, "--lora", f"{lora}:0.5")
    assert found["files"] == expected["files"]
    assert found["model"]["loras"][0]["file"] == lora.name
    assert found["model"]["loras"][0]["weight"] == 0.5
    assert expected["sampler"]["steps"] == 28
    assert found["sampler"]["steps"] == 8  # its name says so
    again = export(tmp_path / "again", tiny_checkpoint, "--lora", lora, "--steps", "6")
    assert again["sampler"]["steps"] == 6
    assert again["files"] != found["files"]


def test_another_lora_begins_the_export_anew(
    tiny_checkpoint: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted export with one LoRA has written must not end up in an export with another."""
    from kontext.export import exporter

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    words = [str(tiny_checkpoint), "-o", str(tmp_path / "out"), "--fp32", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "write_manifest", interrupt)
        assert main.main([*words, "--lora", str(lora)]) == 130
    assert (tmp_path / "out.partial/weights/transformer.safetensors").exists()
    found = export(tmp_path / "out", tiny_checkpoint)
    assert found["files"] == export(tmp_path / "plain", tiny_checkpoint)["files"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora", "nothing.safetensors"], "nothing.safetensors"),
        (["--lora", "{lora}:much"], "'much' is not a weight"),
        (["--base", "{model}"], "is a complete folder: --base"),
        (["--vae", "{lora}"], "is a LoRA"),
        (["--t5", "missing.gguf"], "missing.gguf does not exist"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    tiny_checkpoint: Path,
    lora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [word.format(lora=lora, model=tiny_checkpoint) for word in words]
    assert main.main([str(tiny_checkpoint), "-o", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_unmatched_lora_is_refused_or_taken_in_part(
    tiny_checkpoint: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(lora)
    tensors |= {name.replace("blocks.0", "blocks.7"): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, lora)
    words = [str(tiny_checkpoint), "-o", str(tmp_path / "out"), "--fp32", "--lora", str(lora)]
    assert main.main([*words, "--quiet"]) == 2
    assert "--lora-partial" in capsys.readouterr().err
    assert main.main([*words, "--lora-partial"]) == 0
    printed = capsys.readouterr()
    assert "transformer_blocks.7" in printed.out
