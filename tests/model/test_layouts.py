"""One model in every layout that people have it in: each made by, or read back by, code that we did not write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin, load_state  # noqa: E402
from kontext.model.config import KontextConfig  # noqa: E402
from kontext.model.gguf_file import t5_names  # noqa: E402
from kontext.model.layouts import network_sources  # noqa: E402
from kontext.model.networks import weight_shapes  # noqa: E402

State = dict[str, dict[str, torch.Tensor]]


HALVES = {"encoder": "vae_encoder", "decoder": "vae_decoder"}


ATTENTION = (
    "mid.attn_1.q.weight",
    "mid.attn_1.k.weight",
    "mid.attn_1.v.weight",
    "mid.attn_1.proj_out.weight",
)


@pytest.fixture(scope="module")
def state(tiny_checkpoint: Path) -> State:
    """Network → native name → fp32 weight."""
    return load_state(tiny_checkpoint)


def native_transformer(state: State) -> dict[str, torch.Tensor]:
    return {**state["modulation"], **state["transformer"]}


def native_autoencoder(state: State) -> dict[str, torch.Tensor]:
    """As in `ae.safetensors`: both halves, with 1x1 convolutions in place of the attention's linears."""
    return {
        f"{half}.{name}": tensor[..., None, None].clone() if name in ATTENTION else tensor
        for half, network in HALVES.items()
        for name, tensor in state[network].items()
    }


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(first[name][key], second[name][key]) for key in first[name])
        for name in first
    )


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def test_native_names_are_what_diffusers_converts() -> None:
    """Its conversion knows only the real sizes. It moves rows and leaves columns alone, so one column is enough, with
    a number of its own in every row."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    config = KontextConfig()
    native, position = {}, 0
    for network in ("modulation", "transformer"):
        for name, shape in weight_shapes(network, config).items():
            native[name] = torch.arange(position, position + shape[0], dtype=torch.int32)
            position += shape[0]
    converted = utils.convert_flux_transformer_checkpoint_to_diffusers(dict(native))
    sources = network_sources("modulation", config) | network_sources("transformer", config)
    assert {part for source in sources.values() for part in source.parts} == converted.keys()
    for name, source in sources.items():
        assert torch.equal(source.assemble(converted.__getitem__), native[name]), name


def test_native_autoencoder_is_what_diffusers_converts(state: State, tiny_checkpoint: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    config = diffusers.AutoencoderKL.load_config(tiny_checkpoint / "vae")
    converted = utils.convert_ldm_vae_checkpoint(native_autoencoder(state), config)
    theirs = load_file(tiny_checkpoint / "vae/diffusion_pytorch_model.safetensors")
    assert converted.keys() == theirs.keys()
    assert all(torch.equal(converted[name].reshape(theirs[name].shape), theirs[name]) for name in theirs)


def test_single_files(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    transformer = save(tmp_path / "flux1-kontext-dev.safetensors", native_transformer(state))
    autoencoder = save(tmp_path / "ae.safetensors", native_autoencoder(state))
    clip = save(tmp_path / "clip_l.safetensors", state["text_encoder"])
    t5 = save(tmp_path / "t5xxl_fp16.safetensors", state["text_encoder_2"])
    files = {"vae": autoencoder, "text_encoder": clip, "text_encoder_2": t5}
    origin = Origin(transformer, files, tiny_checkpoint)
    assert same(load_state(origin), state)
    opened = Checkpoint.open(origin)
    assert opened.config.name == "flux1-kontext-dev"
    assert set(opened.files) == {transformer, autoencoder, clip, t5}
    assert Checkpoint.open(Origin(transformer, files, tiny_checkpoint, name="mine")).config.name == "mine"


def test_base_gives_what_a_file_lacks(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "merged.safetensors", native_transformer(state))
    assert same(load_state(Origin(path, base=tiny_checkpoint)), state)


def test_folder_beside_the_file_is_its_base(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Black Forest Labs' repository holds single files and diffusers' folders side by side."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "FLUX.1-Kontext-dev"))
    doubled = {name: 2 * tensor for name, tensor in native_transformer(state).items()}
    path = save(folder / "flux1-kontext-dev.safetensors", doubled)
    read = load_state(path)
    assert torch.equal(read["transformer"]["img_in.weight"], 2 * state["transformer"]["img_in.weight"])
    assert torch.equal(read["vae_encoder"]["conv_in.weight"], state["vae_encoder"]["conv_in.weight"])


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_diffusers_transformer_in_one_file(
    prefix: str, state: State, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    theirs = load_file(tiny_checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    path = save(tmp_path / "tuned.safetensors", prefixed(prefix, theirs))
    assert same(load_state(Origin(path, base=tiny_checkpoint)), state)


def all_in_one(state: State) -> dict[str, torch.Tensor]:
    return {
        **prefixed("model.diffusion_model.", native_transformer(state)),
        **prefixed("vae.", native_autoencoder(state)),
        **prefixed("text_encoders.clip_l.transformer.", state["text_encoder"]),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.eye(32),
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        **prefixed("text_encoders.t5xxl.transformer.", state["text_encoder_2"]),
        "text_encoders.t5xxl.logit_scale": torch.tensor(4.6),
    }


def test_all_in_one(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "all.safetensors", all_in_one(state))
    bare = tmp_path / "base"
    for folder in ("vae", "transformer", "text_encoder", "text_encoder_2"):
        (bare / folder).mkdir(parents=True)
        shutil.copy(tiny_checkpoint / folder / "config.json", bare / folder)
    for folder in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tiny_checkpoint / folder, bare / folder)
    assert same(load_state(Origin(path, base=bare)), state)


TOLERANCE = {"F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 0.006, "Q5_0": 0.05, "Q4_0": 0.11}
"""Upper bounds of the formats' relative errors."""


def write_gguf(path: Path, architecture: str, tensors: dict[str, torch.Tensor], quantization: str) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[quantization]
        if tensor.ndim != 2 or tensor.shape[-1] % 32:
            kind = gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.numpy().astype(np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("quantization", TOLERANCE)
def test_gguf(quantization: str, state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "flux.gguf", "flux", native_transformer(state), quantization)
    opened = Checkpoint.open(Origin(path, base=tiny_checkpoint))
    assert opened.config.name == "flux"
    for network in ("transformer", "modulation"):
        for name, tensor in state[network].items():
            read = opened.networks[network].read(name)
            assert read.shape == tensor.shape
            assert float((read - tensor).norm()) <= TOLERANCE[quantization] * float(tensor.norm())


def test_t5_in_gguf(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    theirs = {ours: name for name, ours in t5_names(2).items()}
    named = {theirs[name]: tensor for name, tensor in state["text_encoder_2"].items()}
    t5 = write_gguf(tmp_path / "t5.gguf", "t5encoder", named, "F32")
    transformer = save(tmp_path / "flux.safetensors", native_transformer(state))
    origin = Origin(transformer, {"text_encoder_2": t5}, tiny_checkpoint)
    assert same(load_state(origin), state)


def refuse(origin: Origin, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(origin)


def edited(change: Callable[[dict[str, torch.Tensor]], object], state: State, path: Path) -> Path:
    tensors = dict(native_transformer(state))
    change(tensors)
    return save(path, tensors)


FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "a tensor less": (
        lambda t: t.pop("double_blocks.0.img_mlp.0.bias"),
        "lacks tensor double_blocks.0.img_mlp",
    ),
    "a tensor more": (
        lambda t: t.update(ghost=torch.ones(1)),
        "ghost does not belong to FluxTransformer2DModel",
    ),
    "another shape": (
        lambda t: t.update({"img_in.bias": torch.ones(7)}),
        r"img_in.bias \[7\] does not fit the model's sizes, expected \[64\]",
    ),
    "integers": (
        lambda t: t.update({"img_in.bias": torch.ones(64, dtype=torch.int32)}),
        "img_in.bias is I32, expected a float format",
    ),
    "two transformers": (
        lambda t: t.update({f"second.{name}": tensor.clone() for name, tensor in list(t.items())}),
        "holds the transformer twice",
    ),
    "half of bitsandbytes": (
        lambda t: t.update({"img_in.weight.absmax": torch.ones(4)}),
        "img_in.weight.absmax is there with 0 of bitsandbytes' quant_state",
    ),
    "packed bytes": (
        lambda t: t.update({"img_in.weight": torch.ones(64, 32, dtype=torch.uint8)}),
        "img_in.weight is U8, expected a float format",
    ),
    "a scale alone": (
        lambda t: t.update({"img_in.scale_weight": torch.tensor(1.0)}),
        "img_in.scale_weight belongs to a quantized weight, but img_in.weight is F32",
    ),
    "another ComfyUI format": (
        lambda t: t.update(
            {"img_in.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}
        ),
        "img_in.weight is F32 .* expected a matrix in U8 for nvfp4",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_file(fault: str, state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    refuse(Origin(edited(change, state, tmp_path / "flux.safetensors"), base=tiny_checkpoint), message)


def test_other_models_and_other_files(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    stranger = save(
        tmp_path / "sdxl.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(3)}
    )
    refuse(Origin(stranger), "holds no component of FLUX.1 Kontext")
    lora = save(
        tmp_path / "lora.safetensors", {"double_blocks.0.img_mod.lin.lora_A.weight": torch.ones(1, 3)}
    )
    refuse(Origin(lora), "is a LoRA: .* --lora")
    autoencoder = save(tmp_path / "ae.safetensors", native_autoencoder(state))
    refuse(Origin(autoencoder), "holds the autoencoder, not the transformer")
    flux = save(tmp_path / "flux.safetensors", native_transformer(state))
    refuse(Origin(flux, {"vae": flux}, tiny_checkpoint), "holds the transformer: --vae takes the autoencoder")
    refuse(Origin(flux), "lacks CLIP, T5, the autoencoder: name --clip FILE.*--base FOLDER")
    refuse(Origin(flux, {"vae": autoencoder}), "lacks CLIP, T5")
    refuse(Origin(tmp_path / "nothing.safetensors"), "does not exist")
    refuse(Origin(flux, base=tmp_path / "nowhere"), "--base takes a diffusers folder")
    refuse(Origin(tiny_checkpoint, base=tiny_checkpoint), "is a complete folder")
    everything = save(tmp_path / "all.safetensors", all_in_one(state))
    refuse(Origin(everything), "not FLUX.1's autoencoder .*--base")
