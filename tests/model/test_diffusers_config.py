"""Configurations of diffusers folders, and damaged ones."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.model.config import SigmasConfig
from kontext.model.config_files import scheduler_fields
from kontext.model.diffusers_config import COMPONENTS, OTHER_PIPELINES, PIPELINES, read_config, read_sampler

from .damaged_folders import edit_json

FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "a bundle": (
        lambda f: (
            (f / "model_index.json").rename(f / "manifest.json"),
            edit_json(f / "manifest.json", format="kontext-bundle"),
        ),
        r"is a bundle: export again from its checkpoint \(not recorded; the model is called nothing\)",
    ),
    "another manifest": (
        lambda f: (f / "model_index.json").rename(f / "manifest.json"),
        "has no model_index.json: it is not a diffusers checkpoint",
    ),
    "a torn manifest": (
        lambda f: ((f / "model_index.json").unlink(), (f / "manifest.json").write_text("{")),
        "has no model_index.json: it is not a diffusers checkpoint",
    ),
    "index torn": (lambda f: (f / "model_index.json").write_text('{"a"'), "is not JSON"),
    "index a list": (lambda f: (f / "model_index.json").write_text("[]"), "should hold a JSON object"),
    "index binary": (lambda f: (f / "model_index.json").write_bytes(b"\xff\x00"), "is not JSON"),
    "another pipeline": (
        lambda f: edit_json(f / "model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name is 'StableDiffusionPipeline'",
    ),
    "FLUX.1 Fill": (
        lambda f: edit_json(f / "model_index.json", _class_name="FluxFillPipeline"),
        r"_class_name is 'FluxFillPipeline', .*; its transformer takes a masked picture and a mask .* \(384",
    ),
    "a list as class": (
        lambda f: edit_json(f / "model_index.json", _class_name=["pipeline", "FluxPipeline"]),
        "_class_name is ",
    ),
    "another autoencoder": (
        lambda f: edit_json(f / "model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        "vae is .*AutoencoderTiny.*, expected .*AutoencoderKL",
    ),
    "further channels": (
        lambda f: edit_json(f / "transformer/config.json", in_channels=384, out_channels=64),
        r"in_channels is 384, expected 64, its out_channels: .* FLUX.1 Fill \(384\)",
    ),
    "no config": (lambda f: (f / "vae/config.json").unlink(), r"vae/config.json is missing"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
    "another scheduler": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
        "DDIMScheduler",
    ),
    "another transformer": (
        lambda f: edit_json(f / "transformer/config.json", _class_name="SD3Transformer2DModel"),
        "expected 'FluxTransformer2DModel'",
    ),
    "training steps": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", num_train_timesteps=500),
        "num_train_timesteps is 500, expected 1000",
    ),
    "inverted": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", invert_sigmas=True),
        "invert_sigmas is True, expected False",
    ),
    "stochastic": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", stochastic_sampling=True),
        "stochastic_sampling is True, expected False",
    ),
    "two spacings": (
        lambda f: edit_json(
            f / "scheduler/scheduler_config.json", use_karras_sigmas=True, use_beta_sigmas=True
        ),
        "use_beta_sigmas is True, expected False beside use_karras_sigmas",
    ),
    "a smallest sigma": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", use_karras_sigmas=True, sigma_min=0.1),
        "sigma_min is 0.1, expected None",
    ),
    "terminal": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", shift_terminal=1),
        "shift_terminal is 1, expected a number from 0 to 1, or null",
    ),
    "another shift": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", time_shift_type="cosine"),
        "time_shift_type is 'cosine', expected 'exponential' or 'linear'",
    ),
    "no shift": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", use_dynamic_shifting=False, shift=0),
        "shift is 0, expected a number above 0",
    ),
    "a negative shift": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", time_shift_type="linear", base_shift=-1),
        "base_shift is -1, expected more than 0, as time_shift_type is 'linear'",
    ),
    "anchors": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", max_image_seq_len=256),
        "max_image_seq_len is 256, expected more than base_image_seq_len, 256",
    ),
    "a decoder": (
        lambda f: edit_json(f / "text_encoder_2/config.json", is_decoder=True),
        "is_decoder is True, expected False",
    ),
    "another activation": (
        lambda f: edit_json(f / "text_encoder_2/config.json", dense_act_fn="relu"),
        "dense_act_fn is 'relu', expected 'gelu_new'",
    ),
    "pruned": (
        lambda f: edit_json(f / "text_encoder/config.json", pruned_heads={"0": [1]}),
        "pruned_heads is {'0': ",
    ),
    "another text encoder": (
        lambda f: edit_json(f / "text_encoder/config.json", model_type="siglip_text_model"),
        "model_type is 'siglip_text_model'",
    ),
    "layers a string": (
        lambda f: edit_json(f / "transformer/config.json", num_layers="2"),
        "num_layers is '2'",
    ),
    "layers huge": (
        lambda f: edit_json(f / "transformer/config.json", num_layers=10**9),
        "num_layers is 1000000000",
    ),
    "more layers than any model": (
        lambda f: edit_json(f / "text_encoder/config.json", num_hidden_layers=65_536),
        "num_hidden_layers is 65536, expected a whole number from 1 to 256",
    ),
    "more layers than any autoencoder": (
        lambda f: edit_json(f / "vae/config.json", layers_per_block=33),
        "layers_per_block is 33, expected a whole number from 1 to 32",
    ),
    "more levels than any autoencoder": (
        lambda f: edit_json(f / "vae/config.json", block_out_channels=[32] * 10),
        "block_out_channels is .*, expected at most 9 levels",
    ),
    "wider than any transformer": (
        lambda f: edit_json(
            f / "transformer/config.json", num_attention_heads=1 << 14, attention_head_dim=128
        ),
        "num_attention_heads is 16384, expected at most 1048576 channels in all heads",
    ),
    "buckets that hold no distance": (
        lambda f: edit_json(f / "text_encoder_2/config.json", relative_attention_num_buckets=2),
        "relative_attention_num_buckets is 2, expected a whole number from 4 to 511",
    ),
    "axes wrong": (
        lambda f: edit_json(f / "transformer/config.json", axes_dims_rope=[8, 8, 8]),
        "axes_dims_rope",
    ),
    "text width": (
        lambda f: edit_json(f / "transformer/config.json", joint_attention_dim=64),
        "text_encoder_2's d_model is 48",
    ),
    "guidance flag": (
        lambda f: edit_json(f / "transformer/config.json", guidance_embeds=1),
        "guidance_embeds is 1",
    ),
    "quant conv": (lambda f: edit_json(f / "vae/config.json", use_quant_conv=...), "use_quant_conv"),
    "vae scale": (
        lambda f: edit_json(f / "vae/config.json", scaling_factor="big"),
        "scaling_factor is 'big'",
    ),
    "vae groups": (lambda f: edit_json(f / "vae/config.json", norm_num_groups=3), "norm_num_groups is 3"),
    "ungated t5": (
        lambda f: edit_json(f / "text_encoder_2/config.json", feed_forward_proj="relu"),
        "feed_forward_proj",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_clear_error(folder: Path, fault: str) -> None:
    break_it, message = FAULTS[fault]
    break_it(folder)
    with pytest.raises(KontextError, match=message):
        read_config(folder)


def test_prompt_length_comes_from_the_tokenizer(folder: Path) -> None:
    assert read_config(folder).text_encoder_2.max_length == 24
    edit_json(folder / "tokenizer_2/tokenizer_config.json", model_max_length=10**30)
    edit_json(folder / "text_encoder_2/config.json", n_positions=...)
    assert read_config(folder).text_encoder_2.max_length == 512


@pytest.mark.parametrize(
    ("changes", "sigmas"),
    [
        ({}, SigmasConfig()),
        ({"use_dynamic_shifting": False, "shift": 1.0}, SigmasConfig("constant", 1.0)),  # FLUX.1 [schnell]'s
        ({"use_dynamic_shifting": ..., "shift": ...}, SigmasConfig("constant", 1.0)),  # the class's defaults
        ({"time_shift_type": "linear"}, SigmasConfig("linear")),
        ({"use_karras_sigmas": True}, SigmasConfig(spacing="karras")),
        ({"use_exponential_sigmas": True}, SigmasConfig(spacing="exponential")),
        ({"use_beta_sigmas": True, "shift_terminal": 0.1}, SigmasConfig(spacing="beta", terminal=0.1)),
        ({"shift_terminal": 0}, SigmasConfig()),
        ({"sigma_min": 0.1}, SigmasConfig()),  # only the other spacings use it
    ],
)
def test_sigmas_are_those_of_the_scheduler(
    folder: Path, changes: dict[str, object], sigmas: SigmasConfig
) -> None:
    path = folder / "scheduler/scheduler_config.json"
    edit_json(path, **changes)
    config = read_sampler(path.parent)
    assert config.sigmas == sigmas
    path.write_text(json.dumps(scheduler_fields(config)))
    assert read_sampler(path.parent) == config


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_with_the_same_parts(folder: Path, name: str) -> None:
    expected = read_config(folder)
    edit_json(folder / "model_index.json", _class_name=name)
    assert read_config(folder) == expected


def test_our_list_of_pipelines_is_that_of_diffusers() -> None:
    """All that diffusers makes of the same parts, with a transformer of the same channels."""
    diffusers = pytest.importorskip("diffusers")
    parts = {*COMPONENTS, "image_encoder", "feature_extractor", "self"}
    for name in (*PIPELINES, *OTHER_PIPELINES):
        pipeline = getattr(diffusers, name)
        same = {*inspect.signature(pipeline.__init__).parameters} <= parts
        assert same or name not in PIPELINES, name


def test_an_image_encoder_is_not_exported(folder: Path) -> None:
    encoder = ["transformers", "CLIPVisionModelWithProjection"]
    edit_json(folder / "model_index.json", image_encoder=encoder)
    with pytest.warns(UserWarning, match=r"model_index.json: unknown, and not used: image_encoder"):
        read_config(folder)
