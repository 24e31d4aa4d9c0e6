"""LoRAs that a request names: what may be named, and pictures with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.bundle import Bundle
from kontext.runtime.server import jobs
from kontext.runtime.server.contract import Limits
from kontext.runtime.server.loras import requested_loras

from .test_jobs import Recorder, arrays, strings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("style", "v1.5_b"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / ".hidden.safetensors").touch()
    (tmp_path / "folder.safetensors").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"style", ("style", 1.0)),
        ("style:0.8", ("style", 0.8)),
        (b"style.safetensors:-.5", ("style", -0.5)),
        (b"v1.5_b:1e-2", ("v1.5_b", 0.01)),
    ],
)
def test_names_and_weights(folder: Path, value: object, found: tuple[str, float]) -> None:
    assert requested_loras(folder, [value]) == [(folder / f"{found[0]}.safetensors", found[1])]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"other", "there is no LoRA 'other' here: there are style, v1.5_b"),
        (b"folder", "there is no LoRA 'folder' here"),
        (b"../style", "LORAS takes NAME or NAME:WEIGHT"),
        (b"/etc/passwd", "LORAS takes NAME or NAME:WEIGHT"),
        (b".hidden", "LORAS takes NAME or NAME:WEIGHT"),
        (b"", "LORAS takes NAME or NAME:WEIGHT"),
        (b"style:", "LORAS takes NAME or NAME:WEIGHT"),
        (b"style:1:2", "LORAS takes NAME or NAME:WEIGHT"),
        (b"style:--1", "LORAS takes NAME or NAME:WEIGHT"),
        (b"style:1e9", "the weight of style must be a number from -1000 to 1000"),
        (b"\xff", "LORAS takes NAME or NAME:WEIGHT"),
        (b"a" * 5000, "LORAS takes NAME or NAME:WEIGHT"),
    ],
)
def test_what_is_no_lora_here(folder: Path, value: bytes, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        requested_loras(folder, [value])


def test_a_server_without_a_folder(folder: Path) -> None:
    with pytest.raises(KontextError, match="there is no LoRA 'style' here: there are none"):
        requested_loras(None, [b"style"])
    with pytest.raises(KontextError, match="LORAS may have at most 8 entries, not 9"):
        requested_loras(folder, [b"style"] * 9)


def test_jobs_with_the_same_loras_run_together(slots_bundle: Path, tmp_path: Path) -> None:
    slots = Bundle.open(slots_bundle).lora_slots
    assert slots is not None
    source = np.random.default_rng(0)
    for name in ("a", "b"):
        factors = (source.standard_normal((rows, 2), np.float32) * 0.1 for rows in slots.rows["transformer"])
        tensors = dict(zip(("transformer.lora_down", "transformer.lora_up"), factors, strict=True))
        metadata = {"format": "kontext-lora", "version": "1", "layout": slots.layout}
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
    pipe = Pipeline.load(slots_bundle, device="cpu", backend="onnxruntime")

    def job(*names: str) -> jobs.Job:
        more: dict[str, Any] = {"LORAS": strings(*(name.encode() for name in names))} if names else {}
        request, _ = jobs.read_request(
            pipe, Limits(), arrays(SIZE=np.array([[64, 64]], np.int32), **more), lora_folder=tmp_path
        )
        return jobs.Job(request, Recorder())

    asked = [job(), job("a"), job("a:1"), job("b", "a:0.5")]
    assert [each.kind == asked[1].kind for each in asked] == [False, True, True, False]
    jobs.run_jobs(pipe, asked[1:3], lambda _: None)
    for alone in (asked[0], asked[3]):
        jobs.run_jobs(pipe, [alone], lambda _: None)
    named: list[list[tuple[Path, float]]] = [
        [],
        [(tmp_path / "a.safetensors", 1.0)],
        [(tmp_path / "a.safetensors", 1.0)],
        [(tmp_path / "b.safetensors", 1.0), (tmp_path / "a.safetensors", 0.5)],
    ]
    pictures = []
    for each, loras in zip(asked, named, strict=True):
        picture = each.listener.picture  # type: ignore[attr-defined]
        expected = pipe.edit(None, "make it blue", steps=2, size=(64, 64), loras=loras)
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
        assert [one["weight"] for one in picture.info["kontext"]["running"]["loras"]] == [w for _, w in loras]
        pictures.append(np.asarray(picture).tobytes())
    assert len(set(pictures)) == 3
