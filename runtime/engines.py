"""Compiled engines as data: what a bundle's manifest says of each, which one fits a GPU, which shapes one takes.

An engine is compiled machine code: it runs on one architecture, with the very version of the library that built it.
Nothing here needs a GPU or the library.
"""

from __future__ import annotations

import importlib
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import KontextError
from .bundle import MANIFEST_NAME, Bundle, listed
from .fields import Fields, whole_numbers

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """One of the two libraries with TensorRT's API. `extra` is pip's name for what installs it."""

    title: str
    module: str
    package: str
    extra: str


LIBRARIES = {
    "rtx": Library("TensorRT for RTX", "tensorrt_rtx", "tensorrt-rtx", "rtx"),
    "tensorrt": Library("TensorRT", "tensorrt", "tensorrt", "tensorrt"),
}
"""What `--engine` and `--device` call them."""

WEIGHTS = ("stripped", "bound", "inside")
"""Where an engine's weights are: put in at load by the library's refit, inputs of the engine, or in its file."""


def load_library(name: str) -> Any:
    """The Python module of a library, imported now.

    Raises:
        KontextError: it is not installed, or cannot be loaded; says what installs it.
    """
    library = LIBRARIES[name]
    try:
        return importlib.import_module(library.module)
    except ModuleNotFoundError as fault:
        if fault.name != library.module:
            raise KontextError(f"{library.title} cannot be loaded: {fault}") from None
        raise KontextError(
            f"{library.title} is not installed: pip install 'kontext-export[{library.extra}]'"
        ) from None
    except (ImportError, OSError, RuntimeError) as fault:
        raise KontextError(f"{library.title} cannot be loaded: {fault}") from None


def platform_name() -> str:
    """The operating system and processor that an engine's host code is for, such as linux-x86_64."""
    return f"{platform.system()}-{platform.machine()}".lower()


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine takes: for each input the least, the best and the largest."""

    use: str
    inputs: Mapping[str, tuple[Shape, Shape, Shape]]

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        return all(
            len(low) == len(shape) == len(high)
            and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
            for (low, _, high), shape in ((self.inputs[name], shape) for name, shape in shapes.items())
        )


@dataclass(frozen=True)
class EngineEntry:
    """An engine of the bundle, and what it needs to run."""

    graph: str
    path: Path
    sha256: str
    library: str
    version: str
    platform: str
    target: str
    """The GPU's architecture: sm89 for compute capability 8.9."""
    precision: str
    weights: str
    graph_sha256: str
    streams: bool
    """Some of its weights may stay in the host's memory."""
    profiles: tuple[Profile, ...]

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes inputs of these shapes.

        Raises:
            KontextError: none does; says what they take.
        """
        for index, profile in enumerate(self.profiles):
            if profile.takes(shapes):
                return index
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        ranges = "; ".join(f"{profile.use}: {described(profile, shapes)}" for profile in self.profiles)
        raise KontextError(f"the engine of {self.graph} does not take {asked} ({ranges})")

    @property
    def largest_batch(self) -> int:
        """Rows that one run takes."""
        first = next(iter(self.profiles[0].inputs))
        return max(profile.inputs[first][2][0] for profile in self.profiles)


def described(profile: Profile, shapes: Mapping[str, Shape]) -> str:
    """The varying sizes of a profile's inputs, for a message."""
    parts = []
    for name in shapes:
        low, _, high = profile.inputs[name]
        if low != high:
            sizes = "x".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(low, high, strict=True))
            parts.append(f"{name} {sizes}")
    return ", ".join(parts)


def read_engines(bundle: Bundle) -> list[EngineEntry]:
    """The engines of a bundle. Raises KontextError where the manifest is at fault."""
    root = Fields(bundle.manifest, f"{bundle.folder / MANIFEST_NAME}: ")
    listing = root.data.get("engines", [])
    if not isinstance(listing, list) or not all(isinstance(item, dict) for item in listing):
        raise root.fault("engines", "must be a list of objects")
    return [
        read_engine(Fields(item, f"{root.where}engines[{index}]."), bundle)
        for index, item in enumerate(listing)
    ]


def read_engine(entry: Fields, bundle: Bundle) -> EngineEntry:
    graph, library, weights = entry.text("graph"), entry.text("library"), entry.text("weights")
    for name, value, known in (
        ("graph", graph, tuple(bundle.graphs)),
        ("library", library, tuple(LIBRARIES)),
        ("weights", weights, WEIGHTS),
    ):
        if value not in known:
            raise entry.fault(name, f"is {value!r}, and not one of {', '.join(known)}")
    target = entry.text("target")
    if not re.fullmatch(r"sm\d{2,3}", target):
        raise entry.fault("target", f"must be an architecture such as sm89, not {target!r:.40}")
    path = listed(entry, "file", bundle.folder, bundle.files)
    profiles = entry.get("profiles")
    if not isinstance(profiles, list) or not profiles:
        raise entry.fault("profiles", "must be a list of profiles")
    streams = entry.data.get("streams", False)
    if not isinstance(streams, bool):
        raise entry.fault("streams", f"must be true or false, not {streams!r:.40}")
    return EngineEntry(
        graph=graph,
        path=path,
        sha256=bundle.files[entry.text("file")].sha256,
        library=library,
        version=entry.text("version"),
        platform=entry.text("platform"),
        target=target,
        precision=entry.text("precision"),
        weights=weights,
        graph_sha256=entry.text("graph_sha256"),
        streams=streams,
        profiles=tuple(
            read_profile(item, Fields(entry.data, f"{entry.where}profiles[{index}]: "))
            for index, item in enumerate(profiles)
        ),
    )


def read_profile(item: Any, where: Fields) -> Profile:
    if not isinstance(item, dict):
        raise KontextError(f"{where.where}must be an object")
    entry = Fields(item, where.where)
    inputs = {}
    group = entry.group("inputs")
    for name, shapes in group.data.items():
        if not isinstance(shapes, list) or len(shapes) != 3 or not isinstance(shapes[0], list):
            raise group.fault(name, "must be three shapes")
        fault = partial(group.fault, name)
        low, best, high = (whole_numbers(shape, len(shapes[0]), fault, least=0) for shape in shapes)
        inputs[name] = (low, best, high)
    if not inputs:
        raise entry.fault("inputs", "must name an input")
    return Profile(entry.text("use"), inputs)


def choose(bundle: Bundle, library: str, version: str, target: str) -> dict[str, EngineEntry]:
    """The engine of every graph for a library's version and a GPU.

    Raises:
        KontextError: a graph has none; says why those that are there do not fit, and what builds one.
    """
    entries = [entry for entry in read_engines(bundle) if entry.library == library]
    return {graph: choose_one(bundle, graph, entries, library, version, target) for graph in bundle.graphs}


def choose_one(
    bundle: Bundle, graph: str, entries: Sequence[EngineEntry], library: str, version: str, target: str
) -> EngineEntry:
    title, command = (
        LIBRARIES[library].title,
        f"kontext-export {bundle.folder} --engine {library} --target {target}",
    )
    there = [entry for entry in entries if entry.graph == graph]
    if not there:
        raise KontextError(f"{bundle.folder} has no {title} engine of {graph}: {command}")
    fitting = [entry for entry in there if entry.target == target]
    if not fitting:
        others = ", ".join(sorted({entry.target for entry in there}))
        raise KontextError(
            f"the engines of {graph} in {bundle.folder} are for {others}, and this GPU is {target}: {command}"
        )
    there, fitting = fitting, [entry for entry in fitting if entry.platform == platform_name()]
    if not fitting:
        raise KontextError(
            f"the {target} engine of {graph} was built for {there[0].platform}, and this is "
            f"{platform_name()}: {command}"
        )
    there, fitting = fitting, [entry for entry in fitting if entry.version == version]
    if not fitting:
        package = LIBRARIES[library].package
        raise KontextError(
            f"the {target} engine of {graph} was built with {title} {there[0].version}, and {version} is "
            f"installed: {command}, or pip install {package}=={there[0].version}"
        )
    graph_file = bundle.graphs[graph].path.relative_to(bundle.folder).as_posix()
    there, fitting = (
        fitting,
        [entry for entry in fitting if entry.graph_sha256 == bundle.files[graph_file].sha256],
    )
    if not fitting:
        raise KontextError(f"the {target} engine of {graph} was built from another graph: {command}")
    return fitting[-1]


def check_budget(entry: EngineEntry) -> None:
    """Raises KontextError if an engine cannot keep part of its weights in host memory."""
    if entry.streams:
        return
    subject = f"the {entry.target} engine of {entry.graph} takes no weight budget"
    if entry.weights == "bound":
        raise KontextError(
            f"{subject}: its weights are its inputs, all of them on the GPU; build it with --engine-weights inside, or "
            "with stripped where there is a GPU"
        )
    raise KontextError(f"{subject}: with less than 1 GiB of weights it was built without weight streaming")


def chunks(count: int, largest: int) -> list[slice]:
    """`count` rows in as few and as equal runs as there can be of at most `largest` rows."""
    runs = max(1, math.ceil(count / largest))
    size = math.ceil(count / runs)
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), max(size, 1))]
