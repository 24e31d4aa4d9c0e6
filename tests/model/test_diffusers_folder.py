"""Diffusers folders: written for diffusers, read from it, sharded, linked and incomplete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, load_state  # noqa: E402
from kontext.model.diffusers_config import read_config  # noqa: E402
from kontext.model.diffusers_folder import save_diffusers  # noqa: E402

from .damaged_folders import CLIP, T5, TRANSFORMER, VAE, edit_json, same, shard  # noqa: E402


def test_round_trip(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config, state = read_config(tiny_checkpoint), load_state(tiny_checkpoint)
    save_diffusers(tmp_path / "again", config, state)
    shutil.copytree(tiny_checkpoint / "tokenizer_2", tmp_path / "again" / "tokenizer_2")
    assert read_config(tmp_path / "again") == config
    assert same(load_state(tmp_path / "again"), state)
    for file in (TRANSFORMER, VAE, CLIP, T5):
        assert (tmp_path / "again" / file).read_bytes() == (tiny_checkpoint / file).read_bytes()


def test_diffusers_loads_what_we_write_and_we_read_what_it_writes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.FluxKontextPipeline.from_pretrained(tiny_checkpoint)
    pipeline.save_pretrained(tmp_path / "theirs", max_shard_size="300KB")
    assert len(list((tmp_path / "theirs" / "transformer").glob("*.safetensors"))) > 1
    assert same(load_state(tmp_path / "theirs"), load_state(tiny_checkpoint))
    ours, theirs = read_config(tiny_checkpoint), read_config(tmp_path / "theirs")
    assert (
        theirs.transformer,
        theirs.autoencoder,
        theirs.text_encoder,
        theirs.text_encoder_2,
        theirs.sampler,
    ) == (
        ours.transformer,
        ours.autoencoder,
        ours.text_encoder,
        ours.text_encoder_2,
        ours.sampler,
    )


def test_shards_and_cache_links(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shard(folder / TRANSFORMER, "diffusion_pytorch_model")
    shard(folder / T5, "model")
    snapshot = tmp_path / "hub" / "models--someone--FLUX.1-Kontext-tiny" / "snapshots" / "0123abc"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        target = snapshot / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(number))
        target.symlink_to(blobs / str(number))
    edit_json(blobs / "0", _name_or_path=...)
    assert same(load_state(snapshot), load_state(tiny_checkpoint))
    assert read_config(snapshot).name == "FLUX.1-Kontext-tiny"


def test_half_precision_download(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / VAE).rename(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    assert same(load_state(folder), load_state(tiny_checkpoint))


def test_save_refuses_what_does_not_fit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    state = load_state(tiny_checkpoint)
    state["vae_encoder"].pop("conv_in.bias")
    with pytest.raises(ValueError, match=r"vae_encoder.*conv_in\.bias"):
        save_diffusers(tmp_path, read_config(tiny_checkpoint), state)


def pickle_only(path: Path) -> None:
    path.rename(path.with_suffix(".bin"))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / TRANSFORMER).unlink(), "is missing: the checkpoint is incomplete"),
    "pickle": (lambda f: pickle_only(f / CLIP), "is a pickle.*convert it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_clear_error(folder: Path, fault: str) -> None:
    break_it, message = FAULTS[fault]
    break_it(folder)
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(folder)


def test_missing_shard(folder: Path) -> None:
    shard(folder / T5, "model")
    (folder / "text_encoder_2" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(KontextError, match=r"model-00002-of-00002.safetensors is missing: .* lists 2 shards"):
        Checkpoint.open(folder)


def test_index_that_promises_too_much(folder: Path) -> None:
    shard(folder / T5, "model")
    index = folder / "text_encoder_2" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weight_map | {"shared.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(KontextError, match=r"lacks tensor shared.weight, which its index lists"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "../../etc/passwd"},
            "names '../../etc/passwd', which is not a safetensors file in its folder",
        ),
        ({"a": "../model.safetensors"}, "which is not a safetensors file in its folder"),
        ({"a": "x/y.safetensors"}, "which is not a safetensors file in its folder"),
        ({"a": 3}, "is not a weight index: TypeError"),
        (["a"], "is not a weight index"),
        (None, "is not a weight index"),
    ],
)
def test_index_that_leaves_its_folder(folder: Path, weight_map: object, message: str) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(folder)
