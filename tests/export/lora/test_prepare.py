"""LoRAs that an edit brings, against exports into which the same LoRAs are fused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.decibels import psnr  # noqa: E402
from kontext.errors import KontextError  # noqa: E402
from kontext.export.cli.main import main  # noqa: E402
from kontext.export.lora.prepare import prepare_lora  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402

from ...model.lora.fusing import diffusers_linears, factors, kohya, linears  # noqa: E402
from .conftest import Untraced, edited  # noqa: E402

SINGLE = "transformer.single_transformer_blocks.0"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def fused(
    tiny_checkpoint: Path, tiny_bundle: Path, untraced: Untraced, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Exports with LoRAs fused."""

    def export(*loras: str, flags: tuple[str, ...] = ()) -> Path:
        folder = tmp_path_factory.mktemp("fused") / "bundle"
        with untraced(tiny_bundle):
            words = ["--fp32", *flags, "--quiet", *(word for lora in loras for word in ("--lora", lora))]
            assert main([str(tiny_checkpoint), "-o", str(folder), *words]) == 0
        return folder

    return export


def peft(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every linear of the transformer and the modulation, q, k and v apart, and CLIP's."""
    own = factors(diffusers_linears(checkpoint), lambda module: f"transformer.{module}")
    return own | factors(linears(checkpoint, "text_encoder"), lambda module: f"text_encoder.{module}")


def sd_scripts(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Black Forest Labs' linears, q, k and v in one, with an alpha each."""
    names = linears(checkpoint, "transformer", "modulation")
    tensors = factors(names, kohya("lora_unet_"), "lora_down lora_up", seed=2)
    modules = {name.partition(".")[0] for name in tensors}
    return tensors | {f"{module}.alpha": torch.tensor(1.5) for module in modules}


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def loha(_: Checkpoint) -> dict[str, torch.Tensor]:
    module = "lycoris_single_blocks_0_linear2"
    return {
        f"{module}.hada_w1_a": random(0, 64, 2),
        f"{module}.hada_w1_b": random(1, 2, 320),
        f"{module}.hada_w2_a": random(2, 64, 2),
        f"{module}.hada_w2_b": random(3, 2, 320),
    }


def lokr(_: Checkpoint) -> dict[str, torch.Tensor]:
    module = "lycoris_single_blocks_0_linear2"
    return {f"{module}.lokr_w1": random(0, 4, 4), f"{module}.lokr_w2": random(1, 16, 80)}


def dora(_: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        f"{SINGLE}.proj_out.lora_A.weight": random(0, 3, 320),
        f"{SINGLE}.proj_out.lora_B.weight": random(1, 64, 3),
        f"{SINGLE}.proj_out.lora_magnitude_vector.weight": random(2, 64).abs() + 0.5,
    }


def difference(_: Checkpoint) -> dict[str, torch.Tensor]:
    return {"diffusion_model.single_blocks.0.linear2.diff": random(0, 64, 320)}


@pytest.mark.parametrize("style", [peft, sd_scripts])
def test_low_rank_changes_are_those_of_a_fused_export(
    checkpoint: Checkpoint, slots_bundle: Path, tiny_bundle: Path, fused, tmp_path: Path, style
) -> None:
    save_file(style(checkpoint), tmp_path / "lora.safetensors")
    done = prepare_lora(checkpoint, tmp_path / "lora.safetensors", tmp_path / "ready.safetensors")
    assert (done.rank, done.errors, done.left_out) == (3, {}, [])
    ours, theirs = (
        edited(slots_bundle, (tmp_path / "ready.safetensors", 0.7)),
        edited(fused(f"{tmp_path / 'lora.safetensors'}:0.7")),
    )
    assert psnr(ours, theirs) > 60
    assert psnr(theirs, edited(tiny_bundle)) < 30


def test_without_loras_nothing_changes(slots_bundle: Path, tiny_bundle: Path) -> None:
    assert np.array_equal(edited(slots_bundle), edited(tiny_bundle))


@pytest.mark.parametrize("style", [loha, lokr, dora, difference])
def test_other_styles_by_their_nearest_factors(
    checkpoint: Checkpoint, slots_bundle: Path, fused, tmp_path: Path, style
) -> None:
    """Of full rank they are those of a fused export; of a lower one the share that is left out is told."""
    save_file(style(checkpoint), tmp_path / "lora.safetensors")
    ready = tmp_path / "ready.safetensors"
    done = prepare_lora(checkpoint, tmp_path / "lora.safetensors", ready, rank=64)
    assert done.rank <= 64
    assert all(error < 1e-5 for error in done.errors.values())
    theirs = edited(fused(str(tmp_path / "lora.safetensors")))
    assert psnr(edited(slots_bundle, (ready, 1.0)), theirs) > 60
    lower = prepare_lora(checkpoint, tmp_path / "lora.safetensors", ready, rank=2)
    assert lower.rank == 2
    (error,) = lower.errors.values()
    tensors = load_file(ready)
    whole = change(checkpoint, tmp_path / "lora.safetensors")
    values = torch.linalg.svdvals(whole)  # the best of rank 2 leaves out the others
    assert error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-3)
    assert {tensor.shape[1] for tensor in tensors.values()} == {2}


def change(checkpoint: Checkpoint, lora: Path) -> torch.Tensor:
    """What a fused export adds to linear2."""
    from kontext.model.checkpoint import Origin

    name = "single_blocks.0.linear2.weight"
    with_lora = Checkpoint.open(Origin(checkpoint.tokenizers, loras=[(lora, 1.0)]))
    return (
        with_lora.networks["transformer"].read(name) - checkpoint.networks["transformer"].read(name)
    ).double()


def test_several_loras_stand_side_by_side(
    checkpoint: Checkpoint, slots_bundle: Path, fused, tmp_path: Path
) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    ready = [tmp_path / "a-ready.safetensors", tmp_path / "b-ready.safetensors"]
    for path, style, output in zip(paths, (peft, sd_scripts), ready, strict=True):
        save_file(style(checkpoint), path)
        prepare_lora(checkpoint, path, output)
    ours = edited(slots_bundle, (ready[0], 0.5), (ready[1], -0.3))
    assert psnr(ours, edited(fused(f"{paths[0]}:0.5", f"{paths[1]}:-0.3"))) > 60


def test_kept_prompts_are_those_of_the_loras(
    checkpoint: Checkpoint, slots_bundle: Path, tmp_path: Path
) -> None:
    """A LoRA that changes CLIP changes what was kept of a prompt."""
    from kontext.runtime import Pipeline

    names = linears(checkpoint, "text_encoder")
    save_file(factors(names, lambda module: f"text_encoder.{module}"), tmp_path / "lora.safetensors")
    prepare_lora(checkpoint, tmp_path / "lora.safetensors", tmp_path / "ready.safetensors")
    pipeline = Pipeline.load(slots_bundle, device="cpu", backend="onnxruntime")
    pictures = []
    for loras in ([], [tmp_path / "ready.safetensors"], []):
        pipeline.load_loras(loras)
        pictures.append(np.asarray(pipeline.edit(None, "x", steps=1, size=(64, 64))))
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_backend_takes_them(
    checkpoint: Checkpoint, slots_bundle: Path, tmp_path: Path, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    save_file(peft(checkpoint), tmp_path / "lora.safetensors")
    prepare_lora(checkpoint, tmp_path / "lora.safetensors", tmp_path / "ready.safetensors")
    from kontext.runtime import Pipeline

    pipeline = Pipeline.load(slots_bundle, device="cpu", backend=backend)
    for loras in ([], [(tmp_path / "ready.safetensors", 0.7)], []):
        pipeline.load_loras(loras)
        ours = np.asarray(pipeline.edit(None, "x", steps=2, size=(64, 64)))
        other = Pipeline.load(slots_bundle, device="cpu", backend="onnxruntime")
        other.load_loras(loras)
        assert psnr(ours, np.asarray(other.edit(None, "x", steps=2, size=(64, 64)))) > 60


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"transformer.single_transformer_blocks.0.proj_out.lora_A.weight": random(0, 3, 320),
             "transformer.single_transformer_blocks.0.proj_out.lora_B.weight": random(1, 64, 3),
             "diffusion_model.single_blocks.0.linear2.diff_b": random(2, 64)},
            r"changes 1 weights that are no linears with a slot \(transformer: single_blocks.0.linear2.bias\)",
        ),
        ({"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight": random(0, 2, 48),
          "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight": random(1, 48, 2)},
         "changes 1 weights that are no linears with a slot"),
        ({"transformer.single_transformer_blocks.0.proj_out.lora_A.weight": random(0, 3, 321),
          "transformer.single_transformer_blocks.0.proj_out.lora_B.weight": random(1, 64, 3)},
         "made for another model"),
    ],
)  # fmt: skip
def test_what_no_slot_is_for(
    checkpoint: Checkpoint, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(KontextError, match=message):
        prepare_lora(checkpoint, tmp_path / "lora.safetensors", tmp_path / "ready.safetensors")
    assert not (tmp_path / "ready.safetensors").exists()


def test_the_commands(
    tiny_checkpoint: Path, slots_bundle: Path, checkpoint: Checkpoint, tmp_path: Path, capsys
) -> None:
    from kontext.runtime import cli

    save_file(peft(checkpoint), tmp_path / "lora.safetensors")
    ready, output = tmp_path / "ready.safetensors", tmp_path / "out.png"
    assert main(["lora", str(tmp_path / "lora.safetensors"), str(tiny_checkpoint), "-o", str(ready)]) == 0
    assert "rank 3, " in capsys.readouterr().out
    assert main(["inspect", str(ready), str(slots_bundle)]) == 0
    said = capsys.readouterr().out
    assert "a LoRA ready for bundles with --lora-slots" in said
    assert "edits may bring LoRAs, of rank 64 in all" in said
    words = [
        str(slots_bundle),
        "-p",
        "x",
        "--size",
        "64x64",
        "--steps",
        "1",
        "-o",
        str(output),
        "--device",
        "cpu",
    ]
    assert cli.main([*words, "--lora", f"{ready}:0.5"]) == 0
    capsys.readouterr()
    assert cli.main([*words, "--lora", str(tmp_path / "lora.safetensors")]) == 2
    assert "is not ready for bundles: `kontext-export lora" in capsys.readouterr().err
    assert main(["lora", str(tmp_path / "lora.safetensors"), "-o", str(tmp_path / "x.bin")]) == 2
    assert "name a .safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--int8", "--int4"])
def test_quantized_bundles_take_them(
    checkpoint: Checkpoint, tiny_checkpoint: Path, tiny_bundle: Path, slots_bundle: Path, fused, untraced: Untraced,
    tmp_path: Path, flag: str,
) -> None:  # fmt: skip
    """Centred inputs, integer products and branches of their own beside it: no further from fp32 than a quantized
    export with the LoRA fused."""
    save_file(peft(checkpoint), tmp_path / "lora.safetensors")
    ready = tmp_path / "ready.safetensors"
    prepare_lora(checkpoint, tmp_path / "lora.safetensors", ready)
    with untraced(tiny_bundle):
        words = [tiny_checkpoint, "-o", tmp_path / "b", "--fp32", flag, "--lora-slots", 16, "--quiet"]
        assert main(list(map(str, words))) == 0
    exact = edited(slots_bundle, (ready, 0.7))
    usual = psnr(edited(fused(f"{tmp_path / 'lora.safetensors'}:0.7", flags=(flag,))), exact)
    for backend in ("onnxruntime", "torch"):
        assert psnr(edited(tmp_path / "b", (ready, 0.7), backend=backend), exact) > usual - 3
