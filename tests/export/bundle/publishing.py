"""Small exports, additions and repositories through the real code, and what has to hold after each was killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kontext.bundle_folder import FORMAT
from kontext.errors import KontextError
from kontext.export import exporter, kernels
from kontext.export.bundle import output_folder
from kontext.export.bundle.additions import locked, remove_unfinished
from kontext.export.bundle.folder_kind import BUNDLE, JOURNAL, Kind, files_in
from kontext.export.bundle.output_folder import check_output
from kontext.export.server import repository
from kontext.export.server.repository import REPOSITORY, Settings, write_repository
from kontext.files import write_atomic
from kontext.quant.statistics import Statistics
from kontext.runtime.bundle import Bundle
from kontext.runtime.bundle_files import file_digest

from .kills import Call, calls_of, kill_at


@dataclass(frozen=True)
class Scenario:
    """Something that changes a folder OUT from `before` to `after`, which a kill may interrupt."""

    name: str
    kind: Kind
    act: Callable[[Path, str, bool], object]
    """Makes OUT hold a text: called with OUT, the text and whether --force is given."""
    text: Callable[[Path], str | None]
    """What a whole OUT holds; None if it is not whole."""
    before: str | None = None
    """What OUT holds at the start; None: there is none."""
    force: bool = False
    prepare: Callable[[Path], object] = lambda output: None
    """What else is there at the start."""
    gap: bool = False
    """Whether a kill may leave no OUT, where two names cannot be exchanged."""
    between: tuple[str, ...] = ()
    """What else a whole OUT may hold after a kill."""

    def start(self, parent: Path) -> Path:
        """A new OUT as at the start."""
        parent.mkdir(parents=True)
        output = parent / "out"
        if self.before is not None:
            self.act(output, self.before, False)
        self.prepare(output)
        return output

    def calls(self, parent: Path) -> list[Call]:
        """The system calls from before to after, which are made in the new folder `parent`."""
        self.act(self.start(parent), "after", self.force)  # what is imported late is imported now
        shutil.rmtree(parent)
        output = self.start(parent)
        calls = calls_of(lambda: self.act(output, "after", self.force))
        assert self.text(output) == "after"
        shutil.rmtree(parent)
        return calls

    def kill(self, call: Call, parent: Path) -> bool:
        """Kills at one of `calls`, in the new folder `parent`, and checks all; False if the call did not come."""
        output = self.start(parent / "killed")
        killed = kill_at(lambda: self.act(output, "after", self.force), call)
        try:
            self.check_killed(output)
            self.check_reruns(output, parent, all_of_them=call.changes)
        except BaseException as fault:
            raise AssertionError(f"{self.name}, killed at call {call.number} of {call.text}") from fault
        shutil.rmtree(parent)
        return killed

    def check_killed(self, output: Path) -> None:
        """What holds at every moment: the old one or the new one is there, whole."""
        names = {path.name for path in output.parent.iterdir()}
        assert names <= {"out", "out.partial", "out.replaced", "out.partial.lock"}, names
        if self.gap and "out" not in names:
            assert self.text(output_folder.replaced_folder(output)) == self.before
            assert self.text(output_folder.partial_folder(output)) == "after"
        elif self.before is None:
            assert "out" not in names or self.text(output) == "after"
        else:
            assert self.text(output) in (self.before, "after", *self.between)

    def check_reruns(self, output: Path, scratch: Path, *, all_of_them: bool = True) -> None:
        """Whatever is run next ends with a whole OUT and nothing else: the same, and if wanted a forced and another."""
        finished = output.exists() and self.text(output) == "after"
        reruns = [("again", "after", self.force), ("forced", "after", True), ("other", "other", True)]
        for name, text, force in reruns if all_of_them else reruns[:1]:
            copy = copy_tree(output.parent, scratch / name) / "out"
            refused: Any = contextlib.nullcontext()
            if finished and not force and self.before is None and not (output / JOURNAL).exists():
                # The old export was finished, and nothing is left that tells it from another one.
                refused = pytest.raises(KontextError, match="give --force")
            with refused:
                self.act(copy, text, force)
            assert self.text(copy) == text
            assert exact(copy, self.kind) == [], exact(copy, self.kind)
            assert [path.name for path in copy.parent.iterdir()] == ["out"]
            check_output(copy, self.kind, True)
        if self.before is not None:  # also without another attempt, --force finds nothing in its way
            check_output(output, self.kind, True)


def exact(folder: Path, kind: Kind) -> list[str]:
    """Files of `folder` that it does not list."""
    return sorted({*files_in(folder)} - (kind.listed(folder) or set()))


def copy_tree(source: Path, target: Path) -> Path:
    """With hard links: nothing here changes a file in place."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


# -- exports --


def export(output: Path, text: str, force: bool = False) -> None:
    """`exporter.export` of a checkpoint of two tokenizers; see `small_exports`."""
    checkpoint: Any = SimpleNamespace(
        text=text,
        config=SimpleNamespace(name="small", sampler=SimpleNamespace(steps=4)),
        loras=(),
        ignored={},
        steps_source="",
        parameters=lambda: 0,
    )
    recipe: Any = SimpleNamespace(rules=(), compute={})
    exporter.export(checkpoint, recipe, output, force=force)


@contextlib.contextmanager
def small_exports() -> Iterator[None]:
    """A context in which exports have no weights and graphs, so that they take a moment: all else is as ever."""

    def manifest(checkpoint: Any, *_: object, files: dict[str, object], **__: object) -> dict[str, object]:
        return {"format": FORMAT, "text": checkpoint.text, "files": dict(files)}

    def tokenizers(checkpoint: Any) -> dict[str, object]:
        return {name: SimpleNamespace(text=f"{checkpoint.text} {name}") for name in ("clip", "t5")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "read_tokenizers", tokenizers)
        patch.setattr(exporter, "resume_key", lambda checkpoint, *_: {"text": checkpoint.text})
        patch.setattr(exporter, "lay_out", lambda *_: exporter.Layout({}, {}, {}, Statistics(), {}))
        patch.setattr(exporter, "manifest_links", lambda *_: {})
        patch.setattr(exporter, "build_manifest", manifest)
        patch.setattr(exporter, "Tracers", lambda *_: contextlib.nullcontext())
        patch.setattr(
            exporter, "Bundle", SimpleNamespace(open=lambda folder: SimpleNamespace(graphs=(), links={}))
        )
        yield


def exported_text(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            if file_digest(folder / name) != entry["sha256"]:
                return None
        return str(manifest["text"])
    except FileNotFoundError:
        return None


def unfinished_export(output: Path) -> None:
    """An export that was stopped before its manifest."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(exporter, "write_manifest", stop)
        export(output, "after", True)


def in_two_renames(output: Path, text: str, force: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_folder, "exchange", lambda first, second: False)
        export(output, text, force)


# -- additions --


def add_kernels(output: Path, text: str, _force: bool = False) -> None:
    """The real `add_kernels`, with two files for machine code."""
    names = ("kernels/sm_89/kernels.json", "kernels/sm_89/000-norm.cubin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "compile_kernels", lambda *_: dict.fromkeys(names, text.encode()))
        patch.setattr(kernels, "bundle_sizes", lambda bundle: None)
        patch.setattr(kernels, "has_kernels", lambda bundle, *_: added_text(bundle.folder) == text)
        kernels.add_kernels(output, [89])


def add_engine(output: Path, text: str, _force: bool = False) -> None:
    """What `build_engines` does with a finished engine."""
    from kontext.export.engines.build import record_engine

    same = dict.fromkeys(("graph", "library", "version", "platform", "target"), "x")
    with locked(output):
        bundle = Bundle.open(output)
        remove_unfinished(bundle)
        name = f"engines/sm89/{text}.engine"
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output / name, text)
        record_engine(bundle, {**same, "file": name})


def added_text(folder: Path) -> str | None:
    """ "none" for a bundle without additions."""
    bundle = Bundle.open(folder)
    if bundle.damaged:
        return None
    texts = {
        (folder / name).read_text() for name in bundle.files if name.startswith(("kernels/", "engines/"))
    }
    return None if len(texts) > 1 else next(iter(texts), "none")


# -- all of them --


def scenarios(bundle: Path) -> Iterator[Scenario]:
    """Everything that publishes; `bundle` is a real one, for what adds to it or serves it."""

    def bundle_with(add: Callable[[Path, str], object]) -> Callable[[Path, str, bool], object]:
        def act(output: Path, text: str, _force: bool) -> None:
            if not output.exists():
                copy_tree(bundle, output)
            if text != "none":
                add(output, text)

        return act

    def serve(output: Path, text: str, force: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repository, "copy_runtime", lambda folder: None)
            batch = 1 + ("before", "after", "other").index(text)
            write_repository(bundle, output, Settings(batch=batch), force=force)

    def served_text(folder: Path) -> str | None:
        if not REPOSITORY.is_at(folder) or exact(folder, REPOSITORY) not in ([], ["export-journal.json"]):
            return None
        if not all((folder / name).exists() for name in REPOSITORY.listed(folder) or ()):
            return None
        config = (folder / "models/kontext_stream/config.pbtxt").read_text()
        return next(
            text
            for number, text in enumerate(("before", "after", "other"), 1)
            if f"max_batch_size: {number}\n" in config
        )

    yield Scenario("export", BUNDLE, export, exported_text)
    yield Scenario("resumed export", BUNDLE, export, exported_text, prepare=unfinished_export)
    yield Scenario("forced export", BUNDLE, export, exported_text, before="before", force=True)
    yield Scenario(
        "forced export in two renames",
        BUNDLE,
        in_two_renames,
        exported_text,
        before="before",
        force=True,
        gap=True,
    )
    yield Scenario("repository", REPOSITORY, serve, served_text)
    yield Scenario("forced repository", REPOSITORY, serve, served_text, before="before", force=True)
    for name, add in (("kernels", add_kernels), ("engine", add_engine)):
        act = bundle_with(add)
        yield Scenario(f"first {name}", BUNDLE, act, added_text, before="none")
        # Kernels keep their names: the old ones leave the manifest before they are overwritten.
        between = ("none",) if name == "kernels" else ()
        yield Scenario(f"replaced {name}", BUNDLE, act, added_text, before="before", between=between)
