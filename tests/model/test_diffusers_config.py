"""Configurations of diffusers folders, and damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.model.diffusers_config import read_config

from .damaged_folders import edit_json

FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "a bundle": (
        lambda f: (
            (f / "model_index.json").rename(f / "manifest.json"),
            edit_json(f / "manifest.json", format="kontext-bundle"),
        ),
        "is a bundle, which cannot be exported again: name its checkpoint instead",
    ),
    "another manifest": (
        lambda f: (f / "model_index.json").rename(f / "manifest.json"),
        "has no model_index.json: it is not a diffusers checkpoint",
    ),
    "a torn manifest": (
        lambda f: ((f / "model_index.json").unlink(), (f / "manifest.json").write_text("{")),
        "has no model_index.json: it is not a diffusers checkpoint",
    ),
    "index torn": (lambda f: (f / "model_index.json").write_text('{"a"'), "is not a JSON file"),
    "index a list": (lambda f: (f / "model_index.json").write_text("[]"), "should hold a JSON object"),
    "index binary": (lambda f: (f / "model_index.json").write_bytes(b"\xff\x00"), "is not a JSON file"),
    "another pipeline": (
        lambda f: edit_json(f / "model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name is 'StableDiffusionPipeline'",
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
    "layers a string": (
        lambda f: edit_json(f / "transformer/config.json", num_layers="2"),
        "num_layers is '2'",
    ),
    "layers huge": (
        lambda f: edit_json(f / "transformer/config.json", num_layers=10**9),
        "num_layers is 1000000000",
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
