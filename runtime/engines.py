"""Compiled engines as data: the manifest's entries, which engine runs on a GPU, which shapes an engine takes.

An engine is machine code: it runs on one GPU architecture, with exactly the version of the library that built it.
This module needs neither a GPU nor the library (`load_library` imports it).
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

from ..bundle_folder import MANIFEST_NAME
from ..errors import KontextError
from ..installation import install_command
from .bundle import Bundle
from .bundle_files import listed
from .fields import Fields, whole_numbers

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """One of the two libraries with TensorRT's API. `extra` is the extra of kontext-export that installs it."""

    title: str
    module: str
    package: str
    extra: str


LIBRARIES = {
    "rtx": Library("TensorRT for RTX", "tensorrt_rtx", "tensorrt-rtx", "rtx"),
    "tensorrt": Library("TensorRT", "tensorrt", "tensorrt", "tensorrt"),
}
"""By their names in `--engine` and `--device`."""

WEIGHTS = ("stripped", "bound", "inside")
"""Where an engine's weights are: put in by the library's refit when it is loaded, inputs of the engine, or in its
file."""


def load_library(name: str) -> Any:
    """Imports a library's Python module.

    Raises:
        KontextError: it is not installed, and the message says how to install it, or it cannot be loaded.
    """
    library = LIBRARIES[name]
    try:
        return importlib.import_module(library.module)
    except ModuleNotFoundError as error:
        if error.name != library.module:
            raise KontextError(f"{library.title} cannot be loaded: {error}") from None
        raise KontextError(f"{library.title} is not installed: {install_command(library.extra)}") from None
    except (ImportError, OSError, RuntimeError) as error:
        raise KontextError(f"{library.title} cannot be loaded: {error}") from None


def platform_name() -> str:
    """The operating system and processor that engines built here are for, such as linux-x86_64."""
    return f"{platform.system()}-{platform.machine()}".lower()


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine takes: for each input the smallest, the one it is optimized for, and the largest."""

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
    """An engine of the bundle and what it needs to run."""

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
    """Built with weight streaming: part of its weights may stay in host memory."""
    profiles: tuple[Profile, ...]

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The index of the first profile that takes inputs of these shapes.

        Raises:
            KontextError: none does; the message lists what they take.
        """
        for index, profile in enumerate(self.profiles):
            if profile.takes(shapes):
                return index
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        ranges = "; ".join(f"{profile.use}: {describe_ranges(profile, shapes)}" for profile in self.profiles)
        raise KontextError(f"the engine of {self.graph} does not take {given} ({ranges})")

    @property
    def largest_batch(self) -> int:
        """The largest batch of one run."""
        first = next(iter(self.profiles[0].inputs))
        return max(profile.inputs[first][2][0] for profile in self.profiles)


def describe_ranges(profile: Profile, shapes: Mapping[str, Shape]) -> str:
    """The ranges of a profile's inputs, for a message."""
    parts = []
    for name in shapes:
        low, _, high = profile.inputs[name]
        if low != high:
            sizes = "x".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(low, high, strict=True))
            parts.append(f"{name} {sizes}")
    return ", ".join(parts)


def read_engines(bundle: Bundle) -> list[EngineEntry]:
    """The engines of a bundle. Raises KontextError if the manifest's entries are invalid."""
    root = Fields(bundle.manifest, f"{bundle.folder / MANIFEST_NAME}: ")
    listing = root.data.get("engines", [])
    if not isinstance(listing, list) or not all(isinstance(item, dict) for item in listing):
        raise root.error("engines", "must be a list of objects")
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
            raise entry.error(name, f"must be one of {', '.join(known)}, not {value!r:.40}")
    target = entry.text("target")
    if not re.fullmatch(r"sm\d{2,3}", target):
        raise entry.error("target", f"must be an architecture such as sm89, not {target!r:.40}")
    path = listed(entry, "file", bundle.folder, bundle.files)
    profiles = entry.get("profiles")
    if not isinstance(profiles, list) or not profiles:
        raise entry.error("profiles", "must be a list of profiles")
    streams = entry.data.get("streams", False)
    if not isinstance(streams, bool):
        raise entry.error("streams", f"must be true or false, not {streams!r:.40}")
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
            raise group.error(name, "must be three shapes")
        error = partial(group.error, name)
        low, best, high = (whole_numbers(shape, len(shapes[0]), error, least=0) for shape in shapes)
        inputs[name] = (low, best, high)
    if not inputs:
        raise entry.error("inputs", "must name an input")
    return Profile(entry.text("use"), inputs)


def choose_engines(bundle: Bundle, library: str, version: str, target: str) -> dict[str, EngineEntry]:
    """The engine of every graph for a version of a library and a GPU architecture.

    Raises:
        KontextError: a graph has no such engine; says why its engines do not fit and which command builds one.
    """
    entries = [entry for entry in read_engines(bundle) if entry.library == library]
    return {graph: choose_engine(bundle, graph, entries, library, version, target) for graph in bundle.graphs}


def choose_engine(
    bundle: Bundle, graph: str, entries: Sequence[EngineEntry], library: str, version: str, target: str
) -> EngineEntry:
    title, command = (
        LIBRARIES[library].title,
        f"kontext-export {bundle.folder} --engine {library} --target {target}",
    )
    existing = [entry for entry in entries if entry.graph == graph]
    if not existing:
        raise KontextError(f"{bundle.folder} has no {title} engine of {graph}: {command}")
    fitting = [entry for entry in existing if entry.target == target]
    if not fitting:
        others = ", ".join(sorted({entry.target for entry in existing}))
        raise KontextError(
            f"the engines of {graph} in {bundle.folder} are for {others}, but this GPU is {target}: {command}"
        )
    existing, fitting = fitting, [entry for entry in fitting if entry.platform == platform_name()]
    if not fitting:
        raise KontextError(
            f"the {target} engine of {graph} was built for {existing[0].platform}, but this machine is "
            f"{platform_name()}: {command}"
        )
    existing, fitting = fitting, [entry for entry in fitting if entry.version == version]
    if not fitting:
        package = LIBRARIES[library].package
        raise KontextError(
            f"the {target} engine of {graph} was built with {title} {existing[0].version}, but {version} is "
            f"installed: {command}, or pip install {package}=={existing[0].version}"
        )
    graph_file = bundle.graphs[graph].path.relative_to(bundle.folder).as_posix()
    existing, fitting = (
        fitting,
        [entry for entry in fitting if entry.graph_sha256 == bundle.files[graph_file].sha256],
    )
    if not fitting:
        raise KontextError(f"the {target} engine of {graph} was built from another graph: {command}")
    chosen = fitting[-1]
    problem = bundle.damaged.get(chosen.path.relative_to(bundle.folder).as_posix())
    if problem:
        raise KontextError(f"{problem}: {command}")
    return chosen


def check_budget(entry: EngineEntry) -> None:
    """Raises KontextError if an engine was not built with weight streaming, and says why."""
    if entry.streams:
        return
    subject = f"the {entry.target} engine of {entry.graph} takes no weight budget"
    if entry.weights == "bound":
        raise KontextError(
            f"{subject}: its weights are inputs, which are all on the GPU; build it with --engine-weights inside, or "
            "stripped on a machine with a GPU"
        )
    raise KontextError(
        f"{subject}: engines with less than 1 GiB of weights are built without weight streaming"
    )


def chunks(count: int, largest: int) -> list[slice]:
    """`count` rows split into the fewest runs of at most `largest` rows, of sizes as equal as possible."""
    runs = max(1, math.ceil(count / largest))
    size = math.ceil(count / runs)
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), max(size, 1))]
