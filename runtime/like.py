"""`kontext-edit --like out.png`: the flags that make a picture again, and warnings of what is not as it was."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KontextError
from ..installation import DISTRIBUTION, VERSION
from .backends.options import BACKENDS, DEVICES
from .metadata import LoadedLora, Metadata, PictureDigest, loras, read_metadata
from .references import shown

if TYPE_CHECKING:
    from PIL import Image

FLAGS = {"references": "-i", "mask": "--mask", "init_image": "--init-image"}
"""Key of input pictures in metadata → the flag that gives them again."""

NEVER = ("provider",)
"""Options that a picture's file cannot choose: this one loads a library."""


@dataclass(frozen=True)
class Like:
    """The picture that is to be made again."""

    path: Path
    made: Metadata

    def arguments(self, options: Collection[str]) -> dict[str, Any]:
        """Destination of a flag → value.

        Args:
            options: destinations of the flags that are a backend's options.
        """
        settings = {
            name: shown(value) if name == "reference_size" and isinstance(value, tuple) else value
            for name, value in self.made.settings.items()
        }
        running = self.made.running
        known = running.backend if running.backend in BACKENDS else None
        found = {
            name: value for name, value in running.options.items() if name in options and name not in NEVER
        }
        if running.device not in DEVICES or (known is None and running.device not in ("rtx", "tensorrt")):
            self.warn(
                f"by {running.backend!r} on {running.device!r}, which this does not have: the fastest is taken"
            )
            return settings
        if lost := [name for name in running.options if name in NEVER]:
            self.warn(f"with --{lost[0]}: give it again")
        return {**settings, "backend": known, "device": running.device, **found}

    def check_counts(self, given: Mapping[str, int], loras: int) -> None:
        """Raises KontextError if input pictures or LoRAs are missing: key → how many pictures, and how many LoRAs."""
        for lora in self.made.running.loras[loras:]:
            raise KontextError(
                f"{self.path} was made with the LoRA {lora.file}: give it again with --lora FILE:{lora.weight:g}"
            )
        for key, wanted in self.made.pictures.items():
            if given.get(key, 0) < len(wanted):
                what = {"references": f"{len(wanted)} reference{'s' * (len(wanted) > 1)}"}.get(
                    key, f"a {key}"
                )
                raise KontextError(
                    f"{self.path} was made from {what.replace('_', ' ')}, and its file does not say where they are: "
                    f"give {'them' if len(wanted) > 1 else 'it'} again with {FLAGS[key]} FILE"
                )

    def check_loras(self, given: Sequence[LoadedLora]) -> None:
        """Warns of other LoRAs or weights."""
        wanted = [(each.sha256, each.weight) for each in self.made.running.loras]
        if [(each.sha256, each.weight) for each in given] != wanted:
            names = ", ".join(f"{each.file}:{each.weight:g}" for each in self.made.running.loras) or "none"
            self.warn(f"with other LoRAs ({names})")

    def others(self, given: Mapping[str, Sequence[tuple[object, Image.Image]]]) -> list[str]:
        """What is to be said of input pictures that are not those of the metadata.

        Args:
            given: key → (file, picture), upright and converted as an edit does it.
        """
        notes = []
        for key, pictures in given.items():
            wanted = self.made.pictures.get(key, ())
            for index, (file, picture) in enumerate(pictures):
                name = f"reference {index + 1}" if key == "references" else f"the {key.replace('_', ' ')}"
                if index >= len(wanted):
                    notes.append(f"{self.path} was made without {name}: {file} changes it")
                elif (found := PictureDigest.of(picture)) != wanted[index]:
                    place = f": it is reference {wanted.index(found) + 1}" if found in wanted else ""
                    notes.append(f"{file} is not {name} that {self.path} was made from{place}")
        return notes

    def check_bundle(self, name: str, digest: str) -> None:
        """Warns of another bundle, or another version of this software."""
        if digest != self.made.digest:
            self.warn(
                f"with another bundle, {self.made.bundle} ({self.made.digest}); this is {name} ({digest})"
            )
        if self.made.version != VERSION:
            self.warn(f"by {DISTRIBUTION} {self.made.version}, and this is {VERSION}: the picture may differ")

    def check_answer(self, made: Mapping[str, Any]) -> None:
        """As `check_bundle` and `check_loras`, by the metadata of a picture that a server has made."""
        self.check_bundle(made["bundle"]["name"], made["bundle"]["digest"])
        self.check_loras(loras(made["running"].get("loras", [])))

    def warn(self, what: str) -> None:
        warnings.warn(f"{self.path} was made {what}", stacklevel=3)


def read_like(path: Path) -> Like:
    """Reads what made a picture.

    Raises:
        KontextError: the file is no picture, or does not say.
    """
    from .images import open_picture
    from .picture_metadata import metadata_text

    text = metadata_text(open_picture(path))
    if text is None:
        raise KontextError(f"{path} does not say what made it: it has no metadata of kontext-edit")
    return Like(path, read_metadata(text, str(path)))
