"""Files of LoRAs that were made ready: what is read of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kontext.errors import KontextError
from kontext.regular_files import open_regular
from kontext.runtime import Pipeline
from kontext.runtime.bundle_files import file_digest
from kontext.runtime.lora import Lora, read_loras
from kontext.runtime.lora_slots import LoraSlots, is_ready

SLOTS = LoraSlots(4, {"transformer": (6, 8), "modulation": (3, 5)}, "a layout")
METADATA = {"format": "kontext-lora", "version": "1", "layout": "a layout", "source": "style"}

Tensors = dict[str, np.ndarray]


def tensors(rank: int = 2, graph: str = "transformer") -> Tensors:
    down, up = (np.arange(rows * rank, dtype=np.float32).reshape(rows, rank) for rows in SLOTS.rows[graph])
    return {f"{graph}.lora_down": down, f"{graph}.lora_up": up}


def write(path: Path, held: Tensors, **metadata: str) -> Path:
    save_file(held, path, METADATA | metadata)
    return path


def test_loras_stand_side_by_side_and_weights_multiply_the_outputs(tmp_path: Path) -> None:
    one = Lora.open(write(tmp_path / "a.safetensors", tensors(2)), SLOTS)
    two = Lora.open(write(tmp_path / "b.safetensors", tensors(1) | tensors(1, "modulation")), SLOTS)
    inputs, digests = read_loras(SLOTS, [(one, 0.5), (two, -2.0)])
    expected = tensors(2)["transformer.lora_up"] * 0.5, tensors(1)["transformer.lora_up"] * -2
    assert np.array_equal(inputs["transformer"]["lora_up"], np.concatenate(expected, 1))
    assert inputs["transformer"]["lora_down"].shape == (6, 3)
    assert inputs["modulation"]["lora_up"].shape == (5, 1)  # the other does not change it
    assert digests == [file_digest(one.path), file_digest(two.path)]
    assert read_loras(SLOTS, [])[0]["modulation"]["lora_down"].shape == (3, 0)


def test_a_file_is_read_in_blocks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row, and of a row and a half's bytes."""
    path = write(tmp_path / "a.safetensors", tensors(3) | tensors(2, "modulation"))
    lora = Lora.open(path, SLOTS)
    opened = []
    monkeypatch.setattr(
        "kontext.runtime.lora.open_regular", lambda path: (opened.append(path), open_regular(path))[1]
    )
    for size in (4, 18):
        monkeypatch.setattr("kontext.runtime.lora.BLOCK", size)
        inputs, digests = read_loras(SLOTS, [(lora, 1.0)])
        assert np.array_equal(inputs["transformer"]["lora_down"], tensors(3)["transformer.lora_down"])
        assert np.array_equal(inputs["modulation"]["lora_up"], tensors(2, "modulation")["modulation.lora_up"])
        assert digests == [file_digest(path)]
    assert opened == [path, path]


def test_a_file_that_was_cut_off_since(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", tensors())
    lora = Lora.open(path, SLOTS)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(KontextError, match="is truncated"):
        read_loras(SLOTS, [(lora, 1.0)])


DAMAGE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path, "is missing"),
    "not ready": (
        lambda path: write(path, tensors(), format="pt"),
        "is not ready for bundles: `kontext-export lora",
    ),
    "a newer version": (
        lambda path: write(path, tensors(), version="2"),
        "has the version '2', this reads 1",
    ),
    "another model": (lambda path: write(path, tensors(), layout="other"), "for a model of other sizes"),
    "nothing": (lambda path: write(path, {}), "needs lora_down and lora_up of one rank"),
    "half": (
        lambda path: write(path, {"transformer.lora_up": tensors()["transformer.lora_up"]}),
        "needs lora_down and lora_up of one rank",
    ),
    "two ranks": (
        lambda path: write(path, tensors(1) | {"transformer.lora_up": tensors(2)["transformer.lora_up"]}),
        "needs lora_down and lora_up of one rank",
    ),
    "rows": (
        lambda path: write(path, {"transformer.lora_up": np.zeros((7, 1), np.float32)}),
        "is not one of",
    ),
    "a dtype": (
        lambda path: write(path, {"transformer.lora_up": np.zeros((8, 1), np.float16)}),
        "is not one of",
    ),
    "a graph": (
        lambda path: write(path, {"vae.lora_up": np.zeros((8, 1), np.float32)}),
        "is not one of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    make, message = DAMAGE[damage]
    with pytest.raises(KontextError, match=message):
        Lora.open(make(tmp_path / "a.safetensors"), SLOTS)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    held = tensors()
    held["transformer.lora_up"][3, 1] = np.nan
    lora = Lora.open(write(tmp_path / "a.safetensors", held), SLOTS)
    with pytest.raises(KontextError, match=r"transformer\.lora_up holds NaN or infinity"):
        read_loras(SLOTS, [(lora, 1.0)])


def test_more_than_the_slots_hold(tmp_path: Path) -> None:
    loras = [(Lora.open(write(tmp_path / f"{n}.safetensors", tensors(n)), SLOTS), 1.0) for n in (2, 3)]
    with pytest.raises(
        KontextError, match=r"rank 4 for all .* 2.safetensors \(2\) and 3.safetensors \(3\) need 5"
    ):
        read_loras(SLOTS, loras)


def test_a_bundle_without_slots_takes_none(tiny_bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(tiny_bundle, device="cpu", backend="onnxruntime")
    pipeline.load_loras([])
    with pytest.raises(KontextError, match="takes no LoRAs: export it with --lora-slots RANK"):
        pipeline.load_loras([tmp_path / "a.safetensors"])


def test_only_files_that_say_so_are_ready(tmp_path: Path) -> None:
    assert is_ready(write(tmp_path / "a.safetensors", tensors()))
    assert not is_ready(write(tmp_path / "b.safetensors", tensors(), format="pt"))
