"""Variants of weights: every spelling of files and indexes, several beside each other, and those that are not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin, load_state  # noqa: E402
from kontext.model.component_files import find_variants  # noqa: E402

from .damaged_folders import T5, TRANSFORMER, edit_tensors, same, shard  # noqa: E402

STEM = "diffusion_pytorch_model"

SPELLINGS = [
    # diffusers' and transformers' save_pretrained(variant="fp16"), of today
    ("{stem}.safetensors.index.fp16.json", "{stem}.fp16-{number:05}-of-00002.safetensors"),
    # diffusers 0.30
    ("{stem}.safetensors.fp16.index.json", "{stem}-{number:05}-of-00002.fp16.safetensors"),
    ("{stem}.fp16.safetensors.index.json", "{stem}.fp16-{number:05}-of-00002.safetensors"),
]


@pytest.mark.parametrize(("index", "shards"), SPELLINGS)
def test_every_spelling_of_a_sharded_variant(
    folder: Path, tiny_checkpoint: Path, index: str, shards: str
) -> None:
    expected = load_state(tiny_checkpoint)
    for path, stem in ((folder / TRANSFORMER, STEM), (folder / T5, "model")):
        shard(path, stem, index, shards)
        assert find_variants(path.parent, stem) == {"fp16": path.parent / index.format(stem=stem)}
    assert same(load_state(folder), expected)  # the only one there is
    for file in (TRANSFORMER, T5):  # beside plain weights, which are others
        shutil.copy(tiny_checkpoint / file, folder / file)
        edit_tensors(folder / file, lambda tensors: next(iter(tensors.values())).add_(1))
    assert not same(load_state(folder), expected)
    with pytest.warns(UserWarning, match=r"(vae|text_encoder) has no variant fp16: its own weights are used"):
        assert same(load_state(Origin(folder, variant="fp16")), expected)


def test_what_diffusers_writes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.FluxKontextPipeline.from_pretrained(tiny_checkpoint)
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="300KB")
    assert len(list((tmp_path / "transformer").glob("*.fp16-*.safetensors"))) > 1
    assert same(load_state(Origin(tmp_path, variant="fp16")), load_state(tiny_checkpoint))


def test_a_single_file_and_shards_of_the_same_variant(folder: Path) -> None:
    path = folder / TRANSFORMER
    shutil.copy(path, path.with_name(f"{STEM}.bf16.safetensors"))
    assert find_variants(path.parent, STEM) == {"": path, "bf16": path.with_name(f"{STEM}.bf16.safetensors")}
    shard(path, STEM)
    assert find_variants(path.parent, STEM)[""].name == f"{STEM}.safetensors.index.json"


def test_no_plain_weights_and_several_variants(folder: Path, tiny_checkpoint: Path) -> None:
    path = folder / TRANSFORMER
    shutil.copy(path, path.with_name(f"{STEM}.bf16.safetensors"))
    path.rename(path.with_name(f"{STEM}.fp16.safetensors"))
    with pytest.raises(KontextError, match="transformer holds bf16 and fp16: choose one with --variant"):
        Checkpoint.open(folder)
    with pytest.warns(UserWarning, match="has no variant bf16"):
        assert same(load_state(Origin(folder, variant="bf16")), load_state(tiny_checkpoint))


def test_a_variant_that_is_not_there(folder: Path) -> None:
    path = folder / TRANSFORMER
    shutil.copy(path, path.with_name(f"{STEM}.bf16.safetensors"))
    with pytest.raises(KontextError, match=r"has no variant fp16: it holds bf16, plain weights$"):
        Checkpoint.open(Origin(folder, variant="fp16"))


def test_shards_without_their_index(folder: Path) -> None:
    shard(folder / TRANSFORMER, STEM)
    (folder / "transformer" / f"{STEM}.safetensors.index.json").unlink()
    message = r"index.json is missing, which says what is in .*-00001-of-00002.safetensors"
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(folder)
