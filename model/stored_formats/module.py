"""A module of a network as a quantized file stores it: its weight, and the tensors and the note that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import KontextError
from ..safetensors_file import TensorInfo

INSTEAD = "export from the bf16 original, with --fp8, --int8, --int4 or --nf4 for smaller weights"
"""What to do with a file whose format is not read."""

FLOATS = ("F32", "F16", "BF16")
"""Number formats of scales."""


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight, of whose tensors `weight` holds the values; a `StoredWeight` once `shape`, `dtype` and `read`
    are added."""

    weight: TensorInfo

    @property
    def path(self) -> Path:
        return self.weight.path

    @property
    def name(self) -> str:
        return self.weight.name


@dataclass(frozen=True)
class StoredModule:
    """`beside` holds the tensors that belong to `weight`, by their names without the module's; `note` is what the file
    says about the format."""

    name: str
    weight: TensorInfo
    beside: Mapping[str, TensorInfo]
    note: Mapping[str, object]

    @property
    def path(self) -> Path:
        return self.weight.path

    @property
    def note_name(self) -> str:
        """What messages call the note."""
        return f"{self.path}: the note of {self.name}"

    def refuse(self, name: str, what: str) -> KontextError:
        """An error about one of the module's tensors."""
        return KontextError(f"{self.path}: {self.name}.{name} {what}")

    def check_weight(self, format: str, *dtypes: str) -> None:
        """Raises KontextError unless the weight is a matrix in one of the number formats that `format` stores."""
        if self.weight.dtype not in dtypes or len(self.weight.shape) != 2 or 0 in self.weight.shape:
            listed = f"{self.weight.dtype} {list(self.weight.shape)}"
            raise self.refuse(
                "weight", f"is {listed}, expected a matrix in {' or '.join(dtypes)} for {format}"
            )

    def check_beside(self, format: str, *names: str) -> None:
        """Raises KontextError unless every tensor beside the weight is one of `names`, those that `format` has."""
        for name in self.beside:
            if name not in names:
                raise self.refuse(name, f"does not belong to {format}, the format of the weight beside it")

    def take(self, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...], format: str) -> TensorInfo:
        """A tensor beside the weight, in one of these number formats and shapes.

        Raises:
            KontextError: it is missing or another.
        """
        if name not in self.beside:
            raise self.refuse(name, f"is missing: {self.name}.weight is {format}")
        info = self.beside[name]
        if info.dtype not in dtypes or info.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise self.refuse(
                name,
                f"is {info.dtype} {list(info.shape)}, expected {' or '.join(dtypes)} {expected} for {format}",
            )
        return info


def scale_shapes(rows: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of a scale for a whole weight, or for each of its rows."""
    return ((), (1,), (1, 1), (rows,), (rows, 1))
