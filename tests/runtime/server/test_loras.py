"""LoRAs that a request names: what may be named, and pictures with them, also of a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from kontext.bench.serving.local_server import LocalServer
from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.bundle import Bundle
from kontext.runtime.server import jobs
from kontext.runtime.server.contract import Limits
from kontext.runtime.server.loras import requested_loras
from kontext.runtime.server_client import Edit, connect

from ..conftest import Served, until
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


def make_lora(bundle: Path, path: Path, seed: int) -> None:
    """A random LoRA of rank 2 that changes the transformer, as `kontext-export lora` makes one ready."""
    slots = Bundle.open(bundle).lora_slots
    assert slots is not None
    source = np.random.default_rng(seed)
    factors = (source.standard_normal((rows, 2), np.float32) * 0.1 for rows in slots.rows["transformer"])
    tensors = dict(zip(("transformer.lora_down", "transformer.lora_up"), factors, strict=True))
    save_file(tensors, path, {"format": "kontext-lora", "version": "1", "layout": slots.layout})


def test_jobs_with_the_same_loras_run_together(slots_bundle: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        make_lora(slots_bundle, tmp_path / f"{name}.safetensors", number)
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


# -- a real server --

SETTINGS: dict[str, Any] = {"steps": 2, "size": (64, 64)}


@pytest.fixture(scope="module")
def repositories(
    server_environment: Path, slots_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A repository of the bundle with slots for each backend."""
    from kontext.export.cli.main import main

    folder = tmp_path_factory.mktemp("loras")
    made = {}
    for backend in ("python", "onnxruntime"):
        # Of copies: a repository links to the bundle's files, and onnx refuses to read files with several links.
        bundle, made[backend] = shutil.copytree(slots_bundle, folder / f"{backend}-bundle"), folder / backend
        words = [bundle, "--triton", made[backend], "--triton-backend", backend, "--quiet"]
        assert main([str(word) for word in words]) == 0
    return made


@pytest.fixture(scope="module")
def running(repositories: dict[str, Path]) -> Iterator[LocalServer]:
    with Served(repositories["python"] / "models", log=repositories["python"].with_name("log")) as server:
        yield server


@pytest.fixture(scope="module")
def slots_pipeline(slots_bundle: Path) -> Pipeline:
    return Pipeline.load(slots_bundle, device="cpu")


def check_pictures(url: str, pipe: Pipeline, folder: Path, asked: Sequence[Sequence[str]]) -> None:
    """Edits with these LoRAs, sent all at once, are those of the pipeline."""
    edits = [Edit("make it blue", **SETTINGS, loras=names) for names in asked]
    with ThreadPoolExecutor(len(edits)) as callers:
        answers = list(callers.map(connect(url).edit, edits))
    pictures: dict[tuple[str, ...], bytes] = {}
    for names, answer in zip(asked, answers, strict=True):
        loras = requested_loras(folder, names)
        expected = pipe.edit(None, "make it blue", **SETTINGS, loras=loras)
        assert np.array_equal(np.asarray(answer.picture), np.asarray(expected)), names
        made = answer.picture.info["kontext"]["running"]["loras"]
        assert [each["weight"] for each in made] == [weight for _, weight in loras]
        pictures[tuple(names)] = np.asarray(answer.picture).tobytes()
    assert len(set(pictures.values())) == len(pictures)


def test_a_served_edit_brings_its_loras(
    running: Served, slots_pipeline: Pipeline, slots_bundle: Path, tmp_path: Path
) -> None:
    folder = running.models / "kontext_stream" / "loras"
    client = connect(running.http)
    with pytest.raises(KontextError, match="there is no LoRA 'a' here: there are none"):
        client.edit(Edit("make it blue", **SETTINGS, loras=["a"]))
    folder.mkdir()  # while the server runs
    for number, name in enumerate(("a", "b")):
        make_lora(slots_bundle, folder / f"{name}.safetensors", number)
    check_pictures(running.http, slots_pipeline, folder, [[], ["a"], ["b:0.5"], ["a", "b:0.5"], ["a"], []])

    with pytest.raises(KontextError, match=r"^there is no LoRA 'other' here: there are a, b$"):
        client.edit(Edit("make it blue", **SETTINGS, loras=["other"]))
    asked = {"PROMPT": "make it blue", "STEPS": 2, "SIZE": [64, 64], "LORAS": ["other"]}
    status, answer = running.post("models/kontext/generate", asked)
    assert (status, b"there is no LoRA 'other' here" in answer) == (400, True)

    make_lora(slots_bundle, tmp_path / "a.safetensors", 2)  # another one under the same name
    (tmp_path / "a.safetensors").replace(folder / "a.safetensors")
    check_pictures(running.http, slots_pipeline, folder, [["a"], []])
    invalid = running.outcomes("invalid")
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(KontextError, match=r"^broken\.safetensors "):
        client.edit(Edit("make it blue", **SETTINGS, loras=["broken"]))
    until(lambda: running.outcomes("invalid") == invalid + 1)


def test_the_servers_own_backend_takes_loras(
    running: Served,
    repositories: dict[str, Path],
    slots_pipeline: Pipeline,
    slots_bundle: Path,
    tmp_path: Path,
) -> None:
    """The graphs as the server's models have the inputs lora_down and lora_up, of no columns without LoRAs.
    `onnxruntime_backend.py` stands for the server's ONNX Runtime backend, which the wheel does not have."""
    models, backends = repositories["onnxruntime"] / "models", tmp_path / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    (backends / "python").symlink_to(running.backends / "python")
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), backends / "onnxruntime" / "model.py")
    folder = models / "kontext_stream" / "loras"
    folder.mkdir()
    make_lora(slots_bundle, folder / "a.safetensors", 0)
    with LocalServer(models, log=tmp_path / "log", backends=backends) as second:
        check_pictures(second.http, slots_pipeline, folder, [[], ["a"], ["a:0.5"]])
