"""Weight files: FP8 with and without scales, and files that hold no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin, load_state  # noqa: E402

State = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def state(tiny_checkpoint: Path) -> State:
    """Network → native name → fp32 weight."""
    return load_state(tiny_checkpoint)


def native_transformer(state: State) -> dict[str, torch.Tensor]:
    return {**state["modulation"], **state["transformer"]}


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(first[name][key], second[name][key]) for key in first[name])
        for name in first
    )


def test_fp8_cast(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    cast = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in native_transformer(state).items()}
    read = load_state(Origin(save(tmp_path / "fp8_e4m3fn.safetensors", cast), base=tiny_checkpoint))
    for name, tensor in cast.items():
        network = "transformer" if name in state["transformer"] else "modulation"
        assert torch.equal(read[network][name].float(), tensor.float())


@pytest.mark.parametrize("names", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
@pytest.mark.parametrize("per_row", [False, True])
def test_fp8_scaled(
    names: tuple[str, str], per_row: bool, state: State, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    expected = {}
    for name, tensor in native_transformer(state).items():
        if tensor.ndim == 2 and name.startswith("double_blocks"):
            amax = tensor.abs().amax(1) if per_row else tensor.abs().max()
            scale = amax / 448
            values = (tensor / (scale[:, None] if per_row else scale)).to(torch.float8_e4m3fn)
            module = name.removesuffix("weight")
            tensors |= {name: values, module + names[0]: scale, module + names[1]: torch.tensor(0.5)}
            note = b'{"format": "float8_e4m3fn"}'
            tensors[module + "comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
            expected[name] = values.float() * (scale[:, None] if per_row else scale)
        else:
            tensors[name] = tensor
    read = load_state(Origin(save(tmp_path / "scaled.safetensors", tensors), base=tiny_checkpoint))
    merged = {**read["modulation"], **read["transformer"]}
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(merged[name], tensor)
        assert float((merged[name] - native_transformer(state)[name]).norm() / tensor.norm()) < 0.04


def test_scales_in_another_shard(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Shards are cut by size: a weight and its scale may be in different files."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "folder"))
    tensors = load_file(folder / "text_encoder_2/model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    shards = {
        "model-1.safetensors": tensors,
        "model-2.safetensors": {name[:-6] + "weight_scale": torch.tensor(3.0)},
    }
    for file, content in shards.items():
        save(folder / "text_encoder_2" / file, content)
    places = {key: file for file, content in shards.items() for key in content}
    index = folder / "text_encoder_2/model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(load_state(folder)["text_encoder_2"][name], tensors[name].float() * 3)


def refuse(origin: Origin, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(origin)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04", "is a pickle"),
        (b"\x80\x02\x8a", "is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"", "is not a safetensors file"),
    ],
)
def test_files_that_are_no_weights(start: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "flux1.safetensors"
    path.write_bytes(start + bytes(100) if start else b"")
    refuse(Origin(path), message)
