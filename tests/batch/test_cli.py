"""The command on a random model: `kontext-edit`'s pictures, kills, failures, what is refused before anything runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from kontext.batch import cli
from kontext.batch.journal import RESULTS
from kontext.runtime import cli as edit_cli

COMMAND = [sys.executable, "-m", "kontext.batch.cli"]


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]


def write_jobs(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures and a mask, beside which a list of jobs is written."""
    rng = np.random.default_rng(1)
    for name, shape in (("a.png", (96, 96, 3)), ("b.jpg", (80, 160, 3)), ("mask.png", (48, 48))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).resize((128, 128)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pictures_are_those_of_kontext_edit(batch_size: int, tiny_bundle: Path, pictures: Path) -> None:
    """Bit for bit, and with the same warnings: in batches too, on this backend."""
    long = "make it blue " * 40
    rows: list[dict[str, Any]] = [
        {"id": "plain", "image": "a.png", "prompt": "make it blue", "seed": 4},
        {"id": "other", "image": "a.png", "prompt": "turn the day into night", "seed": 5},
        {"id": "two", "image": ["a.png", "b.jpg"], "prompt": "make it blue", "steps": 3},
        {"id": "none", "prompt": "a star", "size": "64x96", "output": "star.webp"},
        {"id": "masked", "image": "a.png", "prompt": "x", "mask": "mask.png", "strength": 0.7, "steps": 4},
        {"id": "negative", "image": "b.jpg", "prompt": "x", "negative_prompt": "red", "true_cfg": 3},
        {"id": "long", "image": "a.png", "prompt": long},
    ]
    out = pictures / "out"
    flags = ["--steps", "2", "--device", "cpu"]
    words = [str(tiny_bundle), write_jobs(pictures, rows), "-o", str(out), "--quiet", *flags]
    assert cli.main([*words, "--batch-size", str(batch_size)]) == 0
    lines = {line["id"]: line for line in results(out)}
    assert list(lines) == [row["id"] for row in rows] or batch_size > 1
    for row in rows:
        expected = pictures / f"expected{Path(row.get('output', 'x.png')).suffix}"
        words = [str(tiny_bundle), "--quiet", *flags, "-o", str(expected)]
        for image in np.atleast_1d(row.get("image", [])):
            words += ["-i", str(pictures / str(image))]
        for name, value in row.items():
            if name not in ("id", "image", "output"):
                value = pictures / value if name == "mask" else value
                words += [f"--{name.replace('_', '-')}", str(value)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            edit_cli.run(words)
        warned = {str(each.message) for each in caught}
        line = lines[row["id"]]
        assert line["path"] == row.get("output", f"{row['id']}.png")
        assert (out / line["path"]).read_bytes() == expected.read_bytes(), row["id"]
        assert line["seed"] == row.get("seed", 0)
        if batch_size == 1:
            assert set(line["warnings"]) == warned
    assert any("longer than" in text for text in lines["long"]["warnings"])


def test_killed_again_and_again_each_job_has_one_result(tiny_bundle: Path, pictures: Path) -> None:
    rows = [
        {"id": f"{n}", "image": "a.png", "prompt": "make it blue", "seed": n, "steps": 4} for n in range(16)
    ]
    jobs, out = write_jobs(pictures, rows), pictures / "out"
    words = [*COMMAND, str(tiny_bundle), jobs, "-o", str(out), "--device", "cpu"]
    kept: dict[str, int] = {}
    for wanted, number in (
        (1, signal.SIGKILL),
        (5, signal.SIGKILL),
        (8, signal.SIGINT),
        (11, signal.SIGTERM),
    ):
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: (out / RESULTS).exists() and (out / RESULTS).read_bytes().count(b"\n") >= wanted)  # noqa: B023
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        if process.returncode == 0:  # faster than the signal
            break
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            assert said.endswith("interrupted; the same command goes on where it stopped\n")
        times = {line["id"]: (out / line["path"]).stat().st_mtime_ns for line in whole(out)}
        assert kept.items() <= times.items()  # nothing is made twice
        kept = times
    assert cli.main(words[3:]) == 0
    lines = results(out)
    assert sorted(int(line["id"]) for line in lines) == list(range(16))
    assert {path.name for path in out.iterdir()} == {RESULTS, *(f"{n}.png" for n in range(16))}
    assert kept.items() <= {line["id"]: (out / line["path"]).stat().st_mtime_ns for line in lines}.items()
    before = (out / RESULTS).read_bytes()
    assert cli.main(words[3:]) == 0
    assert (out / RESULTS).read_bytes() == before


def whole(folder: Path) -> list[dict[str, Any]]:
    data = (folder / RESULTS).read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def until(true: Callable[[], bool], seconds: int = 180) -> None:
    for _ in range(100 * seconds):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")


def test_failures_stand_alone_and_are_run_again_when_asked(
    tiny_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (pictures / "out").mkdir()
    rows: list[dict[str, Any]] = [
        {"id": "gone", "image": "gone.png", "prompt": "x"},
        {"id": "broken", "image": "broken.png", "prompt": "x"},
        {"id": "steps", "prompt": "x", "steps": 0},
        {"id": "size", "prompt": "x", "size": "63x63"},
        {"id": "mask", "image": "a.png", "mask": "broken.png", "prompt": "x"},
        {"id": "good", "image": "a.png", "prompt": "x"},
        {"prompt": "x", "stpes": 3},
    ]
    out = pictures / "out"
    words = [str(tiny_bundle), write_jobs(pictures, rows), "-o", str(out), "--device", "cpu", "--steps", "1"]

    def run(*more: str) -> tuple[str, list[str]]:
        assert cli.main([*words, *more]) == 1
        said = capsys.readouterr()
        return said.out, [line for line in said.err.splitlines() if line.startswith("failed: ")]

    first = run("--batch-size", "4")
    assert first[0] == f"made 1 picture in {out}\n"
    assert [line.partition(": ")[2].partition(":")[0] for line in sorted(first[1])] == [
        *("line 1 (gone)", "line 2 (broken)", "line 3 (steps)", "line 4 (size)", "line 5 (mask)", "line 7")
    ]
    assert "gone.png does not exist" in "".join(first[1])
    assert "there is no column 'stpes'" in "".join(first[1])
    again = run()
    assert again[0] == f"made 0 pictures in {out}, 1 were there\n"
    assert sorted(again[1]) == sorted(first[1])
    Image.new("RGB", (64, 64)).save(pictures / "gone.png")  # another job now: its picture has bytes
    assert len(run()[1]) == 5
    assert len(run("--retry-failed")[1]) == 5
    assert sorted(line["row"] for line in results(out)) == list(range(1, 8))
    assert sorted(path.name for path in out.iterdir()) == ["gone.png", "good.png", RESULTS]


def test_a_folder_of_pictures(tiny_bundle: Path, pictures: Path) -> None:
    words = [str(tiny_bundle), str(pictures), "-o", str(pictures / "out"), "--device", "cpu", "--quiet"]
    assert cli.main([*words, "--prompt", "make it blue", "--steps", "1"]) == 0
    assert [line["path"] for line in results(pictures / "out")] == ["a.png", "b.png", "mask.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jobs": "."}, "is a folder of pictures: say by --prompt"),
        ({"out": "."}, "holds the pictures to edit: name another folder"),
        ({"jobs": "none.jsonl"}, "none.jsonl does not exist"),
        ({"bundle": "none"}, "none"),
        ({"more": ["--batch-size", "0"]}, "--batch-size must be 1 or more"),
        ({"more": ["--compile"]}, "--compile needs --backend torch"),
        ({"more": ["--size", "huge"]}, "--size takes WIDTHxHEIGHT"),
        ({"out": "jobs.jsonl"}, "jobs.jsonl is a file: name a folder"),
    ],
)
def test_what_is_refused_before_anything_is_made(
    change: dict[str, Any],
    message: str,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jobs(tmp_path, [{"prompt": "x"}])
    jobs = "." if change.get("out") == "." else change.get("jobs", "jobs.jsonl")
    words = [change.get("bundle", str(tiny_bundle)), jobs, "-o", change.get("out", "out")]
    prompt = ["--prompt", "x"] if change.get("out") == "." else []
    assert cli.main([*words, *prompt, *change.get("more", [])]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["jobs.jsonl"]


def test_other_loras_make_other_pictures(slots_bundle: Path, pictures: Path) -> None:
    """A run with another --lora makes all jobs again; with the same one none."""
    from kontext.runtime.bundle import Bundle

    slots = Bundle.open(slots_bundle).lora_slots
    assert slots is not None
    factors = (np.full((rows, 1), 0.05, np.float32) for rows in slots.rows["transformer"])
    tensors = dict(zip(("transformer.lora_down", "transformer.lora_up"), factors, strict=True))
    metadata = {"format": "kontext-lora", "version": "1", "layout": slots.layout}
    save_file(tensors, pictures / "lora.safetensors", metadata)
    jobs = write_jobs(pictures, [{"id": "a", "prompt": "x", "size": "64x64", "steps": 1}])
    words = [str(slots_bundle), jobs, "-o", str(pictures / "out"), "--device", "cpu", "--quiet"]
    seen = []
    for loras in ([], ["0.5"], ["0.5"], ["1"], []):
        flags = [word for weight in loras for word in ("--lora", f"{pictures / 'lora.safetensors'}:{weight}")]
        assert cli.main([*words, *flags]) == 0
        (line,) = results(pictures / "out")
        seen.append((line["digest"], (pictures / "out" / line["path"]).read_bytes()))
    assert len(set(seen)) == 3
    assert seen[0] == seen[4]
    assert seen[1] == seen[2]
