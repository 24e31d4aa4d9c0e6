"""`--to optimum`: ONNX Runtime on the written graphs against diffusers' and transformers' modules, and what
optimum-onnx relies on. The pipelines themselves run in `tests/install/test_optimum.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
diffusers = pytest.importorskip("diffusers")

import onnxruntime  # noqa: E402
import transformers  # noqa: E402

from kontext.export.cli.main import main  # noqa: E402
from kontext.export.layouts.optimum import OPTIMUM  # noqa: E402

BATCH, WORDS = 2, 13

INTERFACES = {
    "text_encoder": (
        {"input_ids": ["batch_size", "sequence_length"]},
        {"last_hidden_state": ["batch_size", "sequence_length", 32], "pooler_output": ["batch_size", 32]},
    ),
    "text_encoder_2": (
        {"input_ids": ["batch_size", "sequence_length"]},
        {"last_hidden_state": ["batch_size", "sequence_length", 48]},
    ),
    "vae_encoder": (
        {"sample": ["batch_size", 3, "sample_height", "sample_width"]},
        {"latent_parameters": ["batch_size", 32, "sample_height / 8", "sample_width / 8"]},
    ),
    "vae_decoder": (
        {"latent_sample": ["batch_size", 16, "latent_height", "latent_width"]},
        {"sample": ["batch_size", 3, "latent_height * 8", "latent_width * 8"]},
    ),
    "transformer": (
        {
            "hidden_states": ["batch_size", "packed_height_width", 64],
            "encoder_hidden_states": ["batch_size", "sequence_length", 48],
            "pooled_projections": ["batch_size", 32],
            "timestep": ["batch_size"],
            "img_ids": ["packed_height_width", 3],
            "txt_ids": ["sequence_length", 3],
            "guidance": ["batch_size"],
        },
        {"out_hidden_states": ["batch_size", "packed_height_width", 64]},
    ),
}
"""Graph → inputs and outputs of a small model. optimum-onnx reads its outputs' shapes out of the dimensions' names."""


def to_optimum(checkpoint: Path, output: Path, *flags: object) -> Path:
    words = [checkpoint, "--to", "optimum", "-o", output, "--quiet", *flags]
    assert main([str(word) for word in words]) == 0
    return output


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_optimum(tiny_checkpoint, tmp_path_factory.mktemp("optimum") / "out", "--fp32")


def session(folder: Path, graph: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        folder / graph / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def run(folder: Path, graph: str, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    running = session(folder, graph)
    outputs = running.run(None, {name: value.numpy() for name, value in inputs.items()})
    names = [output.name for output in running.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}


@pytest.mark.parametrize("graph", INTERFACES)
def test_names_shapes_and_dtypes(folder: Path, graph: str) -> None:
    running = session(folder, graph)
    inputs, outputs = INTERFACES[graph]
    assert {each.name: each.shape for each in running.get_inputs()} == inputs
    assert {each.name: each.shape for each in running.get_outputs()} == outputs
    kind = "tensor(int64)" if graph.startswith("text_") else "tensor(float)"
    assert {each.type for each in running.get_inputs()} == {kind}
    assert {each.type for each in running.get_outputs()} == {"tensor(float)"}
    onnx.checker.check_model(folder / graph / "model.onnx", full_check=True)


def test_text_encoders(folder: Path, tiny_checkpoint: Path) -> None:
    """At other lengths than the tokenizers' too."""
    generator = torch.Generator().manual_seed(0)
    clip = transformers.CLIPTextModel.from_pretrained(tiny_checkpoint / "text_encoder").eval()
    ids = torch.randint(0, clip.config.vocab_size - 2, (BATCH, WORDS), generator=generator)
    ids[:, -3] = clip.config.eos_token_id
    with torch.no_grad():
        expected = clip(ids)
    ours = run(folder, "text_encoder", input_ids=ids)
    assert list(ours) == [
        "last_hidden_state",
        "pooler_output",
    ]  # optimum takes T5's first output, whatever its name
    for name, value in ours.items():
        assert torch.allclose(value, expected[name], atol=1e-5), name
    t5 = transformers.T5EncoderModel.from_pretrained(tiny_checkpoint / "text_encoder_2").eval()
    for words in (WORDS, 512):
        ids = torch.randint(0, t5.config.vocab_size, (BATCH, words), generator=generator)
        with torch.no_grad():
            expected = t5(ids).last_hidden_state
        ours = run(folder, "text_encoder_2", input_ids=ids)["last_hidden_state"]
        assert torch.allclose(ours, expected, atol=1e-4), words


def test_the_autoencoder(folder: Path, tiny_checkpoint: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    vae = diffusers.AutoencoderKL.from_pretrained(tiny_checkpoint, subfolder="vae").eval()
    picture = torch.rand(BATCH, 3, 32, 48, generator=generator) * 2 - 1
    latents = torch.randn(BATCH, 16, 6, 4, generator=generator)
    with torch.no_grad():
        parameters = vae.encode(picture).latent_dist.parameters
        expected = vae.decode(latents).sample
    ours = run(folder, "vae_encoder", sample=picture)["latent_parameters"]
    assert torch.allclose(ours, parameters, atol=1e-4)
    assert torch.allclose(run(folder, "vae_decoder", latent_sample=latents)["sample"], expected, atol=1e-4)


def transformer_inputs(tokens: int, config: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(0, 9, (tokens, 3), generator=generator).float()
    return {
        "hidden_states": torch.randn(BATCH, tokens, config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(BATCH, WORDS, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(BATCH, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([0.9, 0.25]),
        "img_ids": ids,
        "txt_ids": torch.zeros(WORDS, 3),
        "guidance": torch.tensor([2.5, 4.0]),
    }


def test_the_transformer(folder: Path, tiny_checkpoint: Path) -> None:
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(tiny_checkpoint, subfolder="transformer").eval()
    for tokens in (24, 7):
        inputs = transformer_inputs(tokens, theirs.config)
        with torch.no_grad():
            expected = theirs(**inputs, return_dict=False)[0]
        ours = run(folder, "transformer", **inputs)["out_hidden_states"]
        assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["fp8", "int8", "int4", "nf4"])
def test_other_formats_run(folder: Path, tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Every weight of the transformer in its format, in both files, and close to fp32."""
    other = to_optimum(tiny_checkpoint, tmp_path / "out", "--fp32", f"--{name}")
    theirs = diffusers.FluxTransformer2DModel.load_config(tiny_checkpoint, subfolder="transformer")
    config = type("Config", (), theirs)
    inputs = transformer_inputs(24, config)
    expected, ours = (run(each, "transformer", **inputs)["out_hidden_states"] for each in (folder, other))
    loss = float((ours - expected).norm() / expected.norm())
    assert 0 < loss < {"fp8": 0.06, "int8": 0.02, "int4": 0.3, "nf4": 0.3}[name]


def test_the_configurations_are_the_components_own(folder: Path, tiny_checkpoint: Path) -> None:
    """What optimum's pipelines read of them."""
    transformer = json.loads((folder / "transformer" / "config.json").read_text())
    assert {"in_channels": 64, "guidance_embeds": True}.items() <= transformer.items()
    given = json.loads((tiny_checkpoint / "vae" / "config.json").read_text())
    for half in ("vae_encoder", "vae_decoder"):
        vae = json.loads((folder / half / "config.json").read_text())
        fields = ("scaling_factor", "shift_factor", "block_out_channels", "latent_channels")
        assert [vae[name] for name in fields] == [given[name] for name in fields]
    assert json.loads((folder / "text_encoder_2" / "config.json").read_text())["num_decoder_layers"] == 2
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert all(OPTIMUM.kind.is_own(name) for name in files)


def test_a_lora_is_fused(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Into modulation and transformer, which have a file each: as into the transformer of diffusers."""
    from safetensors.torch import save_file

    lora, changed = {}, ["transformer_blocks.0.norm1.linear", "single_transformer_blocks.0.attn.to_q"]
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(tiny_checkpoint, subfolder="transformer").eval()
    for name in changed:
        weight = theirs.get_submodule(name).weight
        down, up = torch.ones(1, weight.shape[1]) * 0.01, torch.ones(weight.shape[0], 1) * 0.02
        lora |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        weight.data += up @ down
    save_file(lora, tmp_path / "lora.safetensors")
    other = to_optimum(tiny_checkpoint, tmp_path / "out", "--fp32", "--lora", tmp_path / "lora.safetensors")
    inputs = transformer_inputs(24, theirs.config)
    with torch.no_grad():
        expected = theirs(**inputs, return_dict=False)[0]
    ours = run(other, "transformer", **inputs)["out_hidden_states"]
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (ours - run(folder, "transformer", **inputs)["out_hidden_states"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--nvfp4",),
            "--to optimum cannot hold --nvfp4: it holds --bf16, --fp16, --fp32, --fp8, --int8, --int4",
        ),
        (("--kernels", "sm_89"), "--kernels is for bundles: it means nothing with --to optimum"),
    ],
)
def test_what_it_cannot_hold(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    words = [str(tiny_checkpoint), "--to", "optimum", "-o", str(tmp_path / "out"), *flags]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_folder_is_no_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way back is through MODEL."""
    assert main([str(folder), "-o", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {folder} holds ONNX graphs, as optimum writes and --to optimum does: export the checkpoint that they "
        "were made from\n"
    )
    assert not list(tmp_path.iterdir())
