"""The record of a layout: who reads it, what it can hold, and how its files are planned.

A layout plans its files before any weight is read: small ones as functions that return their bytes, those with weights
as a `Stream` of pieces, which are made one at a time. `write.write_layout` writes them. Modules of layouts import
PyTorch only in functions, so that `--help` is quick.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...bundle_folder import MAX_MANIFEST_BYTES
from ...errors import KontextError
from ...regular_files import read_json
from ..bundle.folder_kind import Kind, listed_in

if TYPE_CHECKING:
    from ..weights.write import Stream
    from .source import WeightSource

PlannedFile: TypeAlias = "Stream | Callable[[], bytes]"

MARKER = "kontext-export.json"
"""In a folder: what it was made from, and its files with their digests. It says that --force may replace them."""

FORMAT = "kontext-layout"

COMPUTE_FORMATS = ("bf16", "fp16", "fp32")
"""Formats that are not quantized."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A way to keep a model.

    Args:
        name: what --to takes.
        readers: what opens it, for the help and the summary.
        formats: the format flags that it can hold, without dashes; a quantized one goes with any of `COMPUTE_FORMATS`.
        variants: what --to NAME:VARIANT takes → what it means; empty: nothing.
        components: of the model, as in `model.networks.NETWORKS`, that it holds.
        suffix: of OUT's name where the layout is one file; "" for a folder.
        names: paths in the folder that are the layout's own; None for one file.
        computes: variant → the flag, without dashes, of the format that it stands for.
        calibrated: variants whose rounding takes what --calibrate measures; `takes` then has "calibrate".
        takes: other options of the command that mean something for it, by their name in `argparse`'s result.
        plan: the files of a model in the order in which they are written: path in the folder → planned file; one entry
            for a layout of one file, whose path is not used.
        usage: a line that says what to do with OUT.
        precision: lines that say which formats the weights have; the first ends the summary's headline. None: that of
            the recipe.
    """

    name: str
    readers: str
    formats: tuple[str, ...]
    variants: Mapping[str, str] = field(default_factory=dict)
    components: tuple[str, ...]
    suffix: str = ""
    names: str = ""
    computes: Mapping[str, str] = field(default_factory=dict)
    calibrated: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    plan: Callable[[WeightSource], Mapping[str, PlannedFile]]
    usage: Callable[[Path], str]
    precision: Callable[[WeightSource], Sequence[str]] | None = None

    @property
    def is_file(self) -> bool:
        return bool(self.suffix)

    @property
    def kind(self) -> Kind:
        """What OUT.partial, and where the layout is a folder OUT, holds."""
        if self.is_file:
            names, name = re.escape(self.file_name), f"{self.name} file"
            return Kind(name, name, "", lambda _: None, re.compile(names), NOTHING)
        marker = re.escape(MARKER)
        return Kind(
            f"{self.name} folder",
            f"folder of the layout {self.name}",
            MARKER,
            lambda folder: listed_in(folder / MARKER, FORMAT) if layout_of(folder) == self.name else None,
            re.compile(f"{marker}|{self.names}"),
            NOTHING,
        )

    @property
    def file_name(self) -> str:
        """The name in OUT.partial of the file of a layout that is one file."""
        return f"weights{self.suffix}"

    def check_format(
        self, variant: str, compute: str | None, quantization: str | None, others: Mapping[str, Layout]
    ) -> None:
        """Raises KontextError for a format that the layout cannot hold, or that `variant` is not; says which it can
        hold, and which of `others` can hold this one."""
        for name in (quantization, compute):
            if name is not None and name not in self.formats:
                held = ", ".join(f"--{each}" for each in self.formats)
                able = [other.name for other in others.values() if name in other.formats]
                more = f"; --{name} goes with --to {' or '.join(able)}" if able else ""
                raise KontextError(f"--to {self.name} cannot hold --{name}: it holds {held}{more}")
        own = self.computes.get(variant, compute)
        if compute not in (None, own):
            raise KontextError(f"--to {self.name}:{variant} is --{own}: leave --{compute} out")


def layout_of(folder: Path) -> str | None:
    """The layout that a folder's `MARKER` names; None if it has none."""
    try:
        data = read_json(folder / MARKER, MAX_MANIFEST_BYTES, "a manifest")
        return str(data["layout"]) if data["format"] == FORMAT else None
    except (KontextError, OSError, KeyError, TypeError):
        return None


NOTHING = re.compile(r"(?!)")
