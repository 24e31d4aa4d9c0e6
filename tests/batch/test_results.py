"""Results on the disk: killed at every system call, and a disk that is full."""

from __future__ import annotations

import argparse
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from kontext.batch.editing import Result
from kontext.batch.jobs import Job
from kontext.batch.journal import RESULTS, Journal
from kontext.batch.results import Writer
from kontext.batch.rows import Row
from kontext.errors import KontextError
from kontext.files import TEMPORARY

from ..export.bundle.kills import calls_of, kill_at, reason_not_to

COLOURS = {"a": "red", "b": "green", "c": "blue"}


def results(changed: str = "") -> list[Result]:
    """Three pictures and a failed row; the colour and the digest of `changed` are others."""
    made = []
    for number, (name, colour) in enumerate(COLOURS.items(), 1):
        picture = Image.new("RGB", (8, 8), "white" if name == changed else colour)
        job = Job(Row(number, "line"), name, f"{name}.png", argparse.Namespace(seed=number))
        made.append(Result(job, f"{name}{name == changed}", picture))
    return [*made, Result(Job(Row(4, "line"), None, fault="no"), "d", error="no")]


def run(folder: Path, wanted: list[Result]) -> None:
    """What the command does with results, in one thread, which strace follows."""
    with Journal.open(folder) as journal:
        writer = Writer(journal)
        for each in wanted:
            if journal.made(each.job.key, each.digest) is None:
                writer.write(each)


def check(folder: Path, wanted: list[Result], *, finished: bool) -> None:
    """One line for each job, in whatever order, and each picture what its line says."""
    data = (folder / RESULTS).read_bytes() if (folder / RESULTS).exists() else b""
    lines = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    keys = [line["id"] or line["row"] for line in lines]
    assert len(keys) == len(set(keys))
    for line in lines:
        if line["path"] is not None:
            with Image.open(folder / line["path"]) as picture:
                colour = "white" if line["digest"].endswith("True") else COLOURS[line["id"]]
                assert picture.getpixel((0, 0)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    if finished:
        assert sorted(map(str, keys)) == ["4", "a", "b", "c"]
        assert {line["digest"] for line in lines} == {each.digest for each in wanted}
        assert not [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]


@pytest.mark.parametrize("again", [False, True], ids=["new", "a row that changed"])
def test_killed_at_every_system_call_that_changes_something(again: bool, tmp_path: Path) -> None:
    if reason := reason_not_to():
        pytest.skip(reason)

    def fresh(name: str) -> Path:
        if again:
            run(tmp_path / name, results())
        return tmp_path / name

    wanted = results("b" if again else "")
    run(tmp_path / "warm", wanted)  # what Pillow loads, it loads here and not in the forks
    start = fresh("start")
    calls = [call for call in calls_of(lambda: run(start, wanted)) if call.changes]
    check(start, wanted, finished=True)
    killed = 0
    for index, call in enumerate(calls):
        folder = fresh(f"{index}")
        killed += kill_at(lambda folder=folder: run(folder, wanted), call)
        if folder.exists():
            check(folder, wanted, finished=False)
        run(folder, wanted)
        check(folder, wanted, finished=True)
    assert killed > 0.9 * len(calls)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A context in which files end at `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [10, 150, 400])
def test_a_full_disk_is_one_line_and_nothing_half_written(size: int, tmp_path: Path) -> None:
    """The picture does not fit, or its line, or a later line."""
    out = tmp_path / "out"

    def write_all() -> None:
        with Journal.open(out) as journal, Writer(journal) as writer:
            for each in results():
                writer.put(each)

    with (
        largest_file(size),
        pytest.raises(KontextError, match=r"cannot be written: (File too large|No space)"),
    ):
        write_all()
    check(out, results(), finished=False)
    run(out, results())
    check(out, results(), finished=True)
