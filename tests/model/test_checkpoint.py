"""Diffusers folders: written for diffusers, read from it, sharded, linked, and broken as users meet them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, load_state  # noqa: E402
from kontext.model.diffusers_config import read_config  # noqa: E402
from kontext.model.diffusers_folder import save_diffusers  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
CLIP = "text_encoder/model.safetensors"
T5 = "text_encoder_2/model.safetensors"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))


def edit_tensors(path: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def shard(path: Path, stem: str) -> None:
    """Splits a weight file in two with an index, as large checkpoints are."""
    tensors = load_file(path)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path.parent / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path.parent / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()


def same(first: dict, second: dict) -> bool:
    return all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(first[name][key], second[name][key]) for key in first[name])
        for name in NETWORKS
    )


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


def test_opening_reads_no_weight(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontext.model.safetensors_file.TensorInfo.read", lambda self: pytest.fail("read"))
    assert Checkpoint.open(folder).parameters() == 497_259


def test_the_identity_changes_with_any_weight_file(folder: Path) -> None:
    before = Checkpoint.open(folder).identity()
    assert before == Checkpoint.open(folder).identity()
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.utime(file, ns=(1, 1))
    after = Checkpoint.open(folder).identity()
    assert [path for path in before if before[path] != after[path]] == [str(file.absolute())]


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


def test_other_spellings_of_the_text_encoders(folder: Path, tiny_checkpoint: Path) -> None:
    def respell_clip(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("text_model.")] = tensors.pop(name)
        tensors["embeddings.position_ids"] = torch.arange(77)

    def respell_t5(tensors: dict) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")

    edit_tensors(folder / CLIP, respell_clip)
    edit_tensors(folder / T5, respell_t5)
    assert same(load_state(folder), load_state(tiny_checkpoint))


def test_half_precision_download(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / VAE).rename(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    assert same(load_state(folder), load_state(tiny_checkpoint))


def test_save_refuses_what_does_not_fit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    state = load_state(tiny_checkpoint)
    state["vae_encoder"].pop("conv_in.bias")
    with pytest.raises(ValueError, match=r"vae_encoder.*conv_in\.bias"):
        save_diffusers(tmp_path, read_config(tiny_checkpoint), state)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(path: Path) -> None:
    path.rename(path.with_suffix(".bin"))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: shutil.rmtree(f), "does not exist"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
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
    "layers wrong": (
        lambda f: edit_json(f / "transformer/config.json", num_layers=2),
        "lacks tensor transformer_blocks.1",
    ),
    "fewer layers": (
        lambda f: edit_json(f / "transformer/config.json", num_single_layers=1),
        "single_transformer_blocks.1.*does not belong to FluxTransformer2DModel",
    ),
    "axes wrong": (
        lambda f: edit_json(f / "transformer/config.json", axes_dims_rope=[8, 8, 8]),
        "axes_dims_rope",
    ),
    "text width": (
        lambda f: edit_json(f / "transformer/config.json", joint_attention_dim=64),
        "text_encoder_2's d_model 48",
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
    "no weights": (lambda f: (f / TRANSFORMER).unlink(), "is missing: the checkpoint is incomplete"),
    "truncated": (lambda f: truncate(f / TRANSFORMER), "is truncated"),
    "pickle": (lambda f: pickle_only(f / CLIP), "is a pickle.*convert it"),
    "missing tensor": (
        lambda f: edit_tensors(f / TRANSFORMER, lambda t: t.pop("x_embedder.weight")),
        "lacks tensor x_embedder.weight",
    ),
    "unknown tensor": (
        lambda f: edit_tensors(f / VAE, lambda t: t.update(quant_conv=torch.ones(1))),
        "quant_conv does not belong to AutoencoderKL",
    ),
    "wrong shape": (
        lambda f: edit_tensors(
            f / TRANSFORMER, lambda t: t.update({"x_embedder.weight": torch.ones(64, 63)})
        ),
        r"x_embedder.weight \[64, 63\] does not fit the model's sizes, expected \[64, 64\]",
    ),
    "wrong part": (
        lambda f: edit_tensors(
            f / TRANSFORMER, lambda t: t.update({"transformer_blocks.0.attn.to_k.bias": torch.ones(65)})
        ),
        r"to_k.bias \[65\]",
    ),
    "a scalar": (
        lambda f: edit_tensors(f / VAE, lambda t: t.update({"encoder.conv_in.bias": torch.tensor(1.0)})),
        "does not fit",
    ),
    "whole numbers": (
        lambda f: edit_tensors(f / T5, lambda t: t.update({"shared.weight": t["shared.weight"].int()})),
        "shared.weight is I32, expected a float format",
    ),
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
    with pytest.raises(KontextError, match=r"model-00002-of-00002.safetensors is missing: 2 shards"):
        Checkpoint.open(folder)


def test_index_that_promises_too_much(folder: Path) -> None:
    shard(folder / T5, "model")
    index = folder / "text_encoder_2" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weight_map | {"shared.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(KontextError, match=r"lacks tensor shared.weight, which its index lists"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "weight_map", [{"a": "../../etc/passwd"}, {"a": "x/y.safetensors"}, {"a": 3}, ["a"], None]
)
def test_index_that_leaves_its_folder(folder: Path, weight_map: object) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    with pytest.raises(KontextError, match="index"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_damaged_numbers_show_when_read(folder: Path, value: float) -> None:
    def damage(tensors: dict) -> None:
        tensors["transformer_blocks.0.attn.to_k.weight"][3, 4] = value

    edit_tensors(folder / TRANSFORMER, damage)
    network = Checkpoint.open(folder).networks["transformer"]
    network.read("double_blocks.0.img_attn.proj.weight")
    with pytest.raises(KontextError, match="NaN or infinity"):
        network.read("double_blocks.0.img_attn.qkv.weight")


def test_prompt_length_comes_from_the_tokenizer(folder: Path) -> None:
    assert read_config(folder).text_encoder_2.max_length == 24
    edit_json(folder / "tokenizer_2/tokenizer_config.json", model_max_length=10**30)
    edit_json(folder / "text_encoder_2/config.json", n_positions=...)
    assert read_config(folder).text_encoder_2.max_length == 512
