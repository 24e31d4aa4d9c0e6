"""Whole models of which one text encoder is used, made by transformers, and what training leaves in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.tokenizer_files import read_tokenizers  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin, load_state  # noqa: E402
from kontext.model.ignored import describe  # noqa: E402

State = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def state(tiny_checkpoint: Path) -> State:
    return load_state(tiny_checkpoint)


def opened(
    component: str, tensors: Mapping[str, torch.Tensor], base: Path, folder: Path, single: bool = True
) -> Checkpoint:
    """The tiny model with one text encoder from a file of `tensors`; its transformer is a single file or `base`'s."""
    path = folder / f"{component}.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    if not single:
        return Checkpoint.open(Origin(base, {component: path}))
    transformer = load_state(base)
    save_file({**transformer["modulation"], **transformer["transformer"]}, folder / "flux.safetensors")
    return Checkpoint.open(Origin(folder / "flux.safetensors", {component: path}, base))


def clip(positions: int = 77) -> transformers.CLIPModel:
    torch.manual_seed(4)
    text = {
        "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": positions, "projection_dim": 16,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 32, "patch_size": 16, "projection_dim": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config={**vision, **sizes}, projection_dim=16)
    return transformers.CLIPModel(config)


def same_text(checkpoint: Checkpoint, model: torch.nn.Module) -> bool:
    theirs = {
        name.removeprefix("text_model."): tensor for name, tensor in model.text_model.state_dict().items()
    }
    network = checkpoint.networks["text_encoder"]
    return all(
        torch.equal(network.read(name), theirs[name.removeprefix("text_model.")]) for name in network.shapes
    )


def test_full_clip(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = clip()
    checkpoint = opened("text_encoder", model.state_dict(), tiny_checkpoint, tmp_path)
    assert same_text(checkpoint, model)
    vision = sum(name.startswith("vision_model.") for name in model.state_dict())
    kinds = checkpoint.ignored["text_encoder"]
    assert {**kinds, "position ids": 0} == {
        "vision tower": vision, "projections": 2, "logit scale": 1, "position ids": 0
    }  # fmt: skip


@pytest.mark.parametrize("name", ["text_projection.weight", "text_projection"])
def test_projection_inside_the_text_model(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = clip()
    text = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("text_model.")}
    text[f"text_model.{name}"] = torch.eye(32)
    checkpoint = opened("text_encoder", text, tiny_checkpoint, tmp_path)
    assert same_text(checkpoint, model)
    assert checkpoint.ignored["text_encoder"]["projections"] == 1


@pytest.mark.parametrize("single", [True, False], ids=["a file and its base", "a folder"])
def test_long_clip_over_a_full_base(single: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The base's configuration and tokenizer are CLIP's, for 77 tokens; LongCLIP's file decides, also of a folder."""
    model = clip(positions=248)
    checkpoint = opened("text_encoder", model.state_dict(), tiny_checkpoint, tmp_path, single)
    assert same_text(checkpoint, model)
    assert checkpoint.config.text_encoder.max_length == 248
    assert read_tokenizers(checkpoint)["clip"].max_length == 248


def test_whole_t5(tiny_checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=160, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    tensors = {**model.state_dict(), "spiece_model": torch.zeros(9, dtype=torch.uint8)}
    checkpoint = opened("text_encoder_2", tensors, tiny_checkpoint, tmp_path)
    network = checkpoint.networks["text_encoder_2"]
    theirs = model.get_encoder().state_dict()
    for name in network.shapes:
        expected = tensors[name] if name == "shared.weight" else theirs[name.removeprefix("encoder.")]
        assert torch.equal(network.read(name), expected)
    decoder = sum(name.startswith("decoder.") for name in tensors)
    expected_kinds = {"decoder": decoder, "output head": 1, "tokenizer": 1, "copies": 1}
    assert checkpoint.ignored["text_encoder_2"] == expected_kinds


LEFTOVERS = [
    "__x0__",
    "loss.logvar",
    "denoiser.sigmas",
    "model_ema.decay",
    "model_ema.diffusion_modelimg_inweight",
]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_training_leaves(prefix: str, state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = {
        prefix + name: tensor for name, tensor in {**state["modulation"], **state["transformer"]}.items()
    }
    save_file({**tensors, **{name: torch.ones(3) for name in LEFTOVERS}}, tmp_path / "flux.safetensors")
    checkpoint = Checkpoint.open(Origin(tmp_path / "flux.safetensors", base=tiny_checkpoint))
    assert sum(checkpoint.ignored["transformer"].values()) == len(LEFTOVERS)


@pytest.mark.parametrize(
    "name", ["vision_model.x", "lm_head.weight", "decoder.x", "logit_scale", "text_projection"]
)
def test_nothing_else_is_ignored(name: str, state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A text encoder's other half is an error in the transformer."""
    tensors = {**state["modulation"], **state["transformer"], name: torch.ones(3)}
    save_file(tensors, tmp_path / "flux.safetensors")
    with pytest.raises(KontextError, match=f"tensor {name} does not belong to FluxTransformer2DModel"):
        Checkpoint.open(Origin(tmp_path / "flux.safetensors", base=tiny_checkpoint))


def test_how_it_is_said() -> None:
    assert describe("CLIP", {"projections": 2, "vision tower": 296}) == (
        "CLIP: not used: vision tower (296 tensors), projections (2)"
    )
