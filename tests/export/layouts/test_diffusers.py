"""`--to diffusers`: folders that diffusers itself opens, and that give the same bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from kontext.decibels import psnr  # noqa: E402
from kontext.export.cli.main import main  # noqa: E402
from kontext.export.cli.source_flags import EMBEDDED  # noqa: E402
from kontext.export.layouts import diffusers as layout  # noqa: E402
from kontext.model.checkpoint import load_state  # noqa: E402
from kontext.runtime import Pipeline  # noqa: E402

SIDE = 128


def run(*words: object) -> None:
    assert main([str(word) for word in (*words, "--quiet")]) == 0


@pytest.fixture(scope="module")
def lora(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes CLIP and a fused weight of the transformer."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    generator = torch.Generator().manual_seed(3)
    modules = {
        "transformer.single_transformer_blocks.0.proj_mlp": (256, 64),
        "transformer.transformer_blocks.0.attn.to_k": (64, 64),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (64, 32),
    }
    tensors = {}
    for name, (rows, columns) in modules.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * 0.1
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.1
    save_file(tensors, path)
    return path


def edit(pipeline: Any, tokens: int) -> Image.Image:
    pipeline.set_progress_bar_config(disable=True)
    made: Image.Image = pipeline(
        image=reference(),
        prompt="make the red circle blue",
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
        width=SIDE,
        height=SIDE,
        max_area=SIDE * SIDE,
        max_sequence_length=tokens,
        _auto_resize=False,
    ).images[0]
    return made


def ours(bundle: Path) -> Image.Image:
    pipe = Pipeline.load(bundle, device="cpu")
    return pipe.edit(
        reference(), "make the red circle blue", steps=3, guidance=3.0, seed=7, size=(SIDE, SIDE)
    )


def reference() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def test_the_way_back_gives_the_same_bundle(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
) -> None:
    """Under the same name, also the same digest: the source is recorded by its folder's name alone."""
    folder = tmp_path / tiny_checkpoint.name
    run(tiny_checkpoint, "--to", "diffusers", "--fp32", "-o", folder)
    with untraced(tiny_bundle):
        run(folder, "--fp32", "-o", tmp_path / "bundle")
    ours, expected = ((each / "manifest.json").read_bytes() for each in (tmp_path / "bundle", tiny_bundle))
    assert ours == expected


def test_loras_are_fused(tiny_checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    """What diffusers reads of the folder are our reader's weights of the model with the LoRA."""
    from kontext.model.checkpoint import Origin

    diffusers = pytest.importorskip("diffusers")
    run(tiny_checkpoint, "--lora", lora, "--to", "diffusers", "--bf16", "-o", tmp_path / "folder")
    expected = load_state(Origin(tiny_checkpoint, loras=[(lora, 1.0)]))
    found = load_state(tmp_path / "folder")
    plain = load_state(tiny_checkpoint)
    for network, weights in expected.items():
        for name, tensor in weights.items():
            assert torch.equal(found[network][name], tensor.bfloat16()), name
    name = "single_blocks.0.linear1.weight"
    assert not torch.equal(found["transformer"][name], plain["transformer"][name].bfloat16())
    opened = diffusers.FluxKontextPipeline.from_pretrained(tmp_path / "folder", torch_dtype=torch.bfloat16)
    key = expected["transformer"]["double_blocks.0.img_attn.qkv.weight"].bfloat16()[64:128]
    assert torch.equal(opened.transformer.transformer_blocks[0].attn.to_k.weight, key)


def test_shards_have_an_index(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr(layout, "SHARD_BYTES", 100_000)
    run(tiny_checkpoint, "--to", "diffusers", "--fp32", "-o", tmp_path / "folder")
    shards = sorted(path.name for path in (tmp_path / "folder" / "transformer").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05d}.safetensors"
    sizes = [path.stat().st_size for path in (tmp_path / "folder").rglob("*-of-*.safetensors")]
    assert max(sizes) < 200_000
    opened = diffusers.FluxKontextPipeline.from_pretrained(tmp_path / "folder")
    theirs = diffusers.FluxKontextPipeline.from_pretrained(tiny_checkpoint)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        found, expected = getattr(opened, part).state_dict(), getattr(theirs, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    state, expected_state = load_state(tmp_path / "folder"), load_state(tiny_checkpoint)
    assert all(
        torch.equal(state[network][name], tensor)
        for network, weights in expected_state.items()
        for name, tensor in weights.items()
    )


@pytest.fixture(scope="module")
def nf4_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (EMBEDDED / "model_index.json").exists():
        pytest.skip("the embedded model is not part of this checkout")
    folder = tmp_path_factory.mktemp("nf4") / "folder"
    run("--to", "diffusers", "--nf4", "--fp32", "-o", folder)
    return folder


@pytest.fixture(scope="module")
def nf4_pipeline(nf4_folder: Path) -> Any:
    """diffusers' pipeline of the folder, on the CPU: bitsandbytes runs there, but diffusers asks for a GPU."""
    pytest.importorskip("bitsandbytes")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: None)
        patch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda *_: {"": "cpu"})
        return diffusers.FluxKontextPipeline.from_pretrained(nf4_folder, torch_dtype=torch.float32)


def test_bitsandbytes_numbers_are_those_of_our_bundles(
    nf4_folder: Path, nf4_pipeline: Any, tmp_path: Path
) -> None:
    """Every linear that it holds in four bits stands for exactly what our NF4 stores of it, and for what our reader
    makes of the folder."""
    import bitsandbytes

    from kontext.quant.formats.nf4 import NF4

    plain, read = load_state(EMBEDDED), load_state(nf4_folder)
    four_bits = 0
    for part, network in (("transformer", "transformer"), ("text_encoder_2", "text_encoder_2")):
        for name, module in getattr(nf4_pipeline, part).named_modules():
            if not isinstance(module, bitsandbytes.nn.Linear4bit) or "norm" in name:
                continue
            native, rows = native_weight(name, network, module)
            values = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            expected = NF4.dequantize(*NF4.quantize(plain[network][native].t(), torch.float32)).t()[rows]
            assert torch.equal(values, expected), name
            assert torch.equal(values, read[network][native][rows]), name
            four_bits += 1
    assert four_bits == 2 * 12 + 4 * 5 + 1 + 2 * 6


def native_weight(name: str, network: str, module: Any) -> tuple[str, slice]:
    """The native weight of a module of diffusers, and its rows in it."""
    from kontext.export.layouts.source import WeightSource
    from kontext.model.checkpoint import Checkpoint
    from kontext.model.networks import NETWORKS
    from kontext.quant.recipe import choose_recipe

    source = WeightSource(Checkpoint.open(EMBEDDED), choose_recipe(tuple(NETWORKS), 1, "fp32"))
    for weight in source.network_weights(network):
        start = 0
        for part, rows in zip(weight.diffusers_names, weight.rows, strict=True):
            if part == f"{name}.weight":
                return weight.name, slice(start, start + rows)
            start += rows
    raise KeyError(name)


def test_what_stays_in_16_bits_or_more(nf4_folder: Path, nf4_pipeline: Any) -> None:
    transformer = nf4_pipeline.transformer
    for name in (
        "x_embedder",
        "context_embedder",
        "norm_out.linear",
        "time_text_embed.text_embedder.linear_1",
    ):
        assert type(transformer.get_submodule(name)) is torch.nn.Linear
    assert type(nf4_pipeline.text_encoder_2.encoder.block[0].layer[1].DenseReluDense.wo) is torch.nn.Linear
    plain, read = load_state(EMBEDDED), load_state(nf4_folder)
    for network, name in (
        ("transformer", "img_in.weight"),
        ("transformer", "double_blocks.0.img_attn.norm.query_norm.scale"),
        ("text_encoder_2", "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
        ("text_encoder_2", "shared.weight"),
        ("vae_decoder", "conv_in.weight"),
    ):
        assert torch.equal(plain[network][name], read[network][name])


def test_the_picture_of_the_nf4_folder_is_our_bundles(
    nf4_folder: Path,
    nf4_pipeline: Any,
    tmp_path: Path,
    embedded: dict[str, Path],
    untraced: Callable[[Path], AbstractContextManager[None]],
) -> None:
    """A bundle of what our reader makes of it in fp32."""
    with untraced(embedded["fp32"]):
        run(nf4_folder, "--fp32", "-o", tmp_path / "bundle")
    theirs = edit(nf4_pipeline, 32)
    assert np.asarray(theirs).std() > 20
    assert psnr(ours(tmp_path / "bundle"), theirs) >= 50


def test_fp8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--to", "diffusers", "--fp8", "-o", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --to diffusers cannot hold --fp8: it holds --bf16, --fp16, --fp32, --nf4")
    assert error.count("\n") == 1


def test_fp16_leaves_t5_in_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(tiny_checkpoint, "--to", "diffusers", "--fp16", "-o", tmp_path / "folder")
    configs = {
        part: json.loads((tmp_path / "folder" / part / "config.json").read_text())["torch_dtype"]
        for part in ("text_encoder", "text_encoder_2")
    }
    assert configs == {"text_encoder": "float16", "text_encoder_2": "float32"}


def test_a_model_that_diffusers_cannot_be_told_of(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import dataclasses

    from kontext.errors import KontextError
    from kontext.export.layouts.diffusers import DIFFUSERS
    from kontext.export.layouts.write import write_layout
    from kontext.model.checkpoint import Checkpoint
    from kontext.model.networks import NETWORKS
    from kontext.quant.recipe import choose_recipe

    checkpoint = Checkpoint.open(tiny_checkpoint)
    wide = dataclasses.replace(checkpoint.config.transformer, mlp_ratio=3.0)
    checkpoint = dataclasses.replace(
        checkpoint, config=dataclasses.replace(checkpoint.config, transformer=wide)
    )
    recipe = choose_recipe(tuple(NETWORKS), 1, "fp32")
    with pytest.raises(KontextError, match=r"cannot be a diffusers folder: .* fixed MLP ratio of 4"):
        write_layout(checkpoint, DIFFUSERS, recipe, tmp_path / "x")
    assert not list(tmp_path.iterdir())
