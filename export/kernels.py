"""The torch backend's kernels in a bundle: `kontext-export MODEL --kernels sm_89 -o OUT`, or added to an existing one.

They go into the bundle's `kernels/<architecture>/`. Added architectures are recorded in the manifest one by one, so
that an interrupted build resumes; Triton's own cache keeps the kernels of an unfinished one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle_folder import MANIFEST_NAME
from ..compute_capability import sm_name
from ..errors import KontextError
from ..files import write_atomic
from ..runtime.bundle import Bundle
from .bundle.additions import is_sound, locked, record, remove_unfinished
from .bundle.manifest import kernel_entries
from .progress import Progress

if TYPE_CHECKING:
    from ..kernels.variants import Sizes

FOLDER = "kernels"


@dataclass(frozen=True)
class KernelSummary:
    """What was added; architectures as sm_89."""

    compiled: Mapping[str, int]
    """Architecture → bytes."""
    kept: Sequence[str]
    """Architectures whose kernels the bundle had."""


def kernel_sizes(transformer: Mapping[str, Any], precision: Mapping[str, Any]) -> Sizes:
    """The sizes to compile kernels for, from a manifest's `model.transformer` and `precision`.

    Raises:
        KontextError: there are no kernels for the number format that the transformer computes in.
    """
    from ..kernels.archive import sizes_of  # imports Triton, which most exports do not need

    layers = precision["layers"].get("transformer", {}).values()
    ranks = {
        layer.get("rank", 0)
        for layer in layers
        if isinstance(layer, dict) and layer["format"] in ("int4", "nvfp4")  # in the product's kernel
    }
    return sizes_of(transformer, precision["compute"], ranks)


def compile_kernels(arch: int, sizes: Sizes, progress: Progress) -> dict[str, bytes]:
    """The files of an architecture's kernels, by their paths in the bundle; a few MB. Raises KontextError."""
    from ..kernels import archive

    architecture = sm_name(arch)
    with progress.steps(f"kernels {architecture}", None) as advance:
        files = dict(archive.archive(arch, sizes, advance=advance))
    return {f"{FOLDER}/{architecture}/{name}": data for name, data in files.items()}


def add_kernels(folder: Path, architectures: Sequence[int], show_progress: bool = False) -> KernelSummary:
    """Adds kernels to the bundle in `folder`; those of another version, or damaged ones, are replaced.

    Args:
        folder: of the bundle.
        architectures: compute capabilities, 89 for sm_89.
        show_progress: draw progress bars on stderr.

    Raises:
        KontextError: it is not a bundle, it computes in a format that has no kernels, or Triton is not installed.
    """
    progress = Progress(show_progress)
    compiled, kept = {}, []
    with locked(folder):
        bundle = Bundle.open(folder)
        sizes = bundle_sizes(bundle)
        remove_unfinished(bundle)
        for arch in architectures:
            architecture = sm_name(arch)
            if has_kernels(bundle, arch, sizes):
                kept.append(architecture)
                continue
            files = compile_kernels(arch, sizes, progress)
            bundle = replace_kernels(bundle, architecture, files)
            compiled[architecture] = sum(map(len, files.values()))
    return KernelSummary(compiled, kept)


def bundle_sizes(bundle: Bundle) -> Sizes:
    """`kernel_sizes` of a bundle. Raises KontextError, also if its manifest lacks a field."""
    try:
        return kernel_sizes(bundle.manifest["model"]["transformer"], bundle.manifest["precision"])
    except (KeyError, TypeError, AttributeError):
        where = bundle.folder / MANIFEST_NAME
        raise KontextError(f"{where}: model.transformer or precision is damaged: export it again") from None


def has_kernels(bundle: Bundle, arch: int, sizes: Sizes) -> bool:
    """Whether a bundle has the very kernels that would be compiled now, with no file missing or damaged."""
    from ..kernels.archive import INDEX, made_from

    prefix = f"{FOLDER}/{sm_name(arch)}/"
    held = [name for name in bundle.files if name.startswith(prefix)]
    if f"{prefix}{INDEX}" not in held or not all(is_sound(bundle, name) for name in held):
        return False
    try:
        index = json.loads((bundle.folder / prefix / INDEX).read_text(encoding="utf-8"))
        listed = {f"{prefix}{entry['file']}" for entry in index["kernels"]} | {f"{prefix}{INDEX}"}
        return bool(index["made_from"] == made_from(arch, sizes) and listed == set(held))
    except (OSError, ValueError, KeyError, TypeError):
        return False  # made by an earlier version


def replace_kernels(bundle: Bundle, architecture: str, files: Mapping[str, bytes]) -> Bundle:
    """Writes an architecture's kernels into a bundle, in place of those that it has; returns the new bundle.

    Their names are the old ones'. So the old ones leave the manifest before the first is overwritten.
    """

    def relist(manifest: dict[str, Any]) -> None:
        manifest["kernels"] = kernel_entries(manifest["files"])

    old = [name for name in bundle.files if name.startswith(f"{FOLDER}/{architecture}/")]
    if old:
        bundle = record(bundle, relist, removed=old)
    for name, data in files.items():
        path = bundle.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return record(bundle, relist, added=files)
