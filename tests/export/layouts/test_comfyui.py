"""`--to comfyui` and `comfyui-checkpoint`: the files' own numbers, and what ComfyUI's loaders make of them.

COMFYUI names a checkout of ComfyUI and COMFYUI_PYTHON the Python of an environment with its
requirements (CONTRIBUTING.md); without them the tests with ComfyUI are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.cli.main import main  # noqa: E402
from kontext.export.layouts import comfyui as layout  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin, load_state  # noqa: E402
from kontext.model.config import (  # noqa: E402
    AutoencoderConfig,
    ClipConfig,
    KontextConfig,
    T5Config,
    TransformerConfig,
)

READER = Path(__file__).with_name("read_with_comfyui.py")


def run(*words: object) -> None:
    assert main([str(word) for word in (*words, "--quiet")]) == 0


def test_scaled_fp8_is_codes_times_one_scale(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    run(tiny_checkpoint, "--to", "comfyui", "--fp8", "--bf16", "-o", path)
    stored, state = load_file(path), load_state(tiny_checkpoint)
    name = "double_blocks.0.img_attn.qkv"
    weight = state["transformer"][f"{name}.weight"]
    module = f"{layout.TRANSFORMER}{name}"
    scale, codes = stored[f"{module}.weight_scale"], stored[f"{module}.weight"]
    assert (scale.shape, scale.dtype, codes.dtype) == ((), torch.float32, torch.float8_e4m3fn)
    assert weight.abs().max() / 448 <= scale <= weight.abs().max() / 448 * (1 + 2**-7)
    assert scale == scale.bfloat16()
    assert torch.equal(codes.float(), (weight / scale).to(torch.float8_e4m3fn).float())
    note = json.loads(stored[f"{module}.comfy_quant"].numpy().tobytes())
    assert note == {"format": "float8_e4m3fn"}
    assert stored[f"{layout.TRANSFORMER}img_in.weight"].dtype == torch.bfloat16
    assert f"{layout.TRANSFORMER}img_in.weight_scale" not in stored
    assert stored[f"{module}.bias"].dtype == torch.bfloat16


def test_a_weight_of_zeros_has_a_scale(tiny_checkpoint: Path) -> None:
    from kontext.export.layouts.source import WeightSource
    from kontext.model.networks import NETWORKS
    from kontext.quant.recipe import choose_recipe

    recipe = choose_recipe(tuple(NETWORKS), 1, "fp32", "fp8", weight_only=True)
    source = WeightSource(Checkpoint.open(tiny_checkpoint), recipe)
    weight = next(each for each in source.weights("transformer") if each.is_linear)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightSource, "read_exactly", lambda *_: torch.zeros(4, 8))
        scale, codes, _ = layout.scaled(source, weight)
        assert scale == 1
        assert not codes.float().any()
        patch.setattr(WeightSource, "read_exactly", lambda *_: torch.full((4, 8), 449.0))
        with pytest.raises(KontextError, match="does not fit into E4M3 without a scale: write --fp8"):
            layout.cast_to_e4m3(source, weight)


@pytest.mark.parametrize("flags", [["comfyui", "--fp8"], ["comfyui:fp8_e4m3fn"], ["comfyui", "--bf16"]])
def test_our_reader_reads_what_the_codes_stand_for(
    tiny_checkpoint: Path, tmp_path: Path, flags: list[str]
) -> None:
    path = tmp_path / "x.safetensors"
    run(tiny_checkpoint, "--to", *flags, "-o", path)
    stored, read = load_file(path), load_state(Origin(path, base=tiny_checkpoint))
    names = {name: network for network in ("modulation", "transformer") for name in read[network]}
    for name, network in names.items():
        own = f"{layout.TRANSFORMER}{name}"
        expected = stored[own].float() * stored.get(f"{own}_scale", torch.tensor(1.0))
        assert torch.equal(read[network][name].float(), expected), name
    assert any(name.endswith(".weight_scale") for name in stored) == ("--fp8" in flags)


def test_plain_and_scaled_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--to", "comfyui:fp8_e4m3fn", "--fp8", "-o", str(tmp_path / "x.safetensors")]) == 2
    assert capsys.readouterr().err == (
        "error: --to comfyui:fp8_e4m3fn has no scales, and --fp8 has: leave one of them out\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_whole_model_comes_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    run(tiny_checkpoint, "--to", "comfyui-checkpoint", "--fp32", "-o", path)
    stored = load_file(path)
    assert stored["vae.decoder.mid.attn_1.q.weight"].shape[2:] == (1, 1)
    expected, read = load_state(tiny_checkpoint), load_state(Origin(path, base=tiny_checkpoint))
    for network, weights in expected.items():
        assert weights.keys() == read[network].keys()
        assert all(torch.equal(read[network][name], tensor) for name, tensor in weights.items())
    assert len(stored) == sum(map(len, expected.values()))


# -- with ComfyUI itself --

SIZES = {
    "clip_l": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2
    },
    "t5xxl": {
        "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 160,
    },
}  # fmt: skip
"""What its text encoders are told to be."""

CONFIG = KontextConfig(
    name="kontext-random",
    # Heads of 128 channels, of which 16, 56 and 56 are for the three axes: what ComfyUI takes every FLUX to have.
    transformer=TransformerConfig(
        hidden_size=256, num_heads=2, num_double_blocks=2, num_single_blocks=2, text_dim=48, pooled_dim=64
    ),
    autoencoder=AutoencoderConfig(),
    text_encoder=ClipConfig(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2),
    text_encoder_2=T5Config(160, 48, 12, 64, num_layers=2, num_heads=4, max_length=24),
)


@pytest.fixture(scope="module")
def comfyui() -> list[str]:
    """How to run the reader."""
    checkout = os.environ.get("COMFYUI")
    if not checkout:
        pytest.skip("COMFYUI names no checkout of ComfyUI (CONTRIBUTING.md)")
    return [os.environ.get("COMFYUI_PYTHON", sys.executable), str(READER), checkout]


@pytest.fixture(scope="module")
def larger(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the parts of FLUX.1's shape that ComfyUI has as constants."""
    import shutil

    from kontext.model.build_network import build_network
    from kontext.model.diffusers_folder import save_diffusers
    from kontext.model.networks import NETWORKS

    folder = tmp_path_factory.mktemp("larger") / "checkpoint"
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name in NETWORKS:
        weights[name] = build_network(name, CONFIG).state_dict()
        for tensor in weights[name].values():
            size = tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 10
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / size + (tensor.ndim == 1))
    save_diffusers(folder, CONFIG, weights)
    for tokenizer in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tiny_checkpoint / tokenizer, folder / tokenizer)
    return folder


def read(comfyui: list[str], path: Path, sizes: object, *inputs: Path) -> dict[str, Any]:
    output = path.with_name("read.safetensors")
    words = [*comfyui, path, json.dumps(sizes), output, *inputs]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(load_file(output))


def test_comfyui_computes_what_diffusers_does(comfyui: list[str], larger: Path, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    generator = torch.Generator().manual_seed(6)
    shapes = {"img": (1, 16, 64), "txt": (1, 8, 48), "y": (1, 64)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    inputs |= {
        "timesteps": torch.tensor([0.7]),
        "guidance": torch.tensor([2.5]),
        "txt_ids": torch.zeros(1, 8, 3),
    }
    inputs["img_ids"] = torch.cartesian_prod(torch.arange(1.0), torch.arange(4.0), torch.arange(4.0))[None]
    save_file(inputs, tmp_path / "inputs.safetensors")
    path = tmp_path / "x.safetensors"
    run(larger, "--to", "comfyui", "--fp32", "-o", path)
    found = read(comfyui, path, None, tmp_path / "inputs.safetensors")["output"]
    network = diffusers.FluxTransformer2DModel.from_pretrained(larger, subfolder="transformer")
    with torch.no_grad():
        expected = network(
            hidden_states=inputs["img"],
            encoder_hidden_states=inputs["txt"],
            pooled_projections=inputs["y"],
            timestep=inputs["timesteps"],
            guidance=inputs["guidance"],
            img_ids=inputs["img_ids"][0],
            txt_ids=inputs["txt_ids"][0],
        ).sample
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "flags", [["comfyui", "--bf16"], ["comfyui", "--fp8", "--bf16"], ["comfyui:fp8_e4m3fn", "--bf16"]]
)
def test_comfyui_holds_the_files_numbers(
    comfyui: list[str], larger: Path, tmp_path: Path, flags: list[str]
) -> None:
    path = tmp_path / "x.safetensors"
    run(larger, "--to", *flags, "-o", path)
    check(load_file(path), read(comfyui, path, None), layout.TRANSFORMER, "")


@pytest.mark.parametrize("flags", [["--bf16"], ["--fp8", "--bf16"]])
def test_comfyui_holds_a_whole_checkpoints_numbers(
    comfyui: list[str], larger: Path, tmp_path: Path, flags: list[str]
) -> None:
    path = tmp_path / "x.safetensors"
    run(larger, "--to", "comfyui-checkpoint", *flags, "-o", path)
    stored, found = load_file(path), read(comfyui, path, SIZES)
    check(stored, found, layout.TRANSFORMER, "")
    check(stored, found, "vae.", "vae.")
    check(stored, found, "text_encoders.clip_l.transformer.", "clip_l.")
    check(stored, found, "text_encoders.t5xxl.transformer.", "t5xxl.")
    assert "t5xxl.encoder.block.0.layer.1.DenseReluDense.wo.weight codes" in found or "--fp8" not in flags


def check(stored: dict[str, Any], found: dict[str, Any], prefix: str, theirs: str) -> None:
    """Every tensor of the file is in ComfyUI's module as it is, quantized ones as codes and scale."""
    checked = 0
    for name, tensor in stored.items():
        if not name.startswith(prefix) or name.endswith((".weight_scale", ".comfy_quant")):
            continue
        own = theirs + name[len(prefix) :].replace("_norm.scale", "_norm.weight")
        scale = stored.get(f"{name}_scale")
        if scale is None:
            assert torch.equal(found[own].float(), tensor.to(found[own].dtype).float()), name
        else:
            assert torch.equal(found[f"{own} codes"].float(), tensor.float()), name
            assert torch.equal(found[f"{own} scale"], scale), name
            # Where it unpacks the weight: the product, rounded once.
            assert torch.equal(found[own], (tensor.float() * scale).to(found[own].dtype)), name
        checked += 1
    assert checked > 10
