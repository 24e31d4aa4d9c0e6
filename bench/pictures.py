"""The pictures of a benchmark's edits, as PNG files in a folder, and how its result names them.

FOLDER/source/0000.png is what the first edit started from, FOLDER/reference/0000.png the reference's picture of it, and
FOLDER/outputs/NAME/0000.png that of each bundle or peer. An edit of text alone has no source.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import PIL.Image

from ..errors import KontextError
from ..runtime.images import open_picture, save_picture

SOURCE, REFERENCE, OUTPUTS = "source", "reference", "outputs"


class OutsideError(KontextError):
    """A result names pictures outside its own folder."""


@dataclass
class PictureFolder:
    """A folder that pictures are written to; `edits` has the names of those of each edit, as in the result."""

    root: Path
    edits: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def prepare(cls, root: Path, result_file: Path | None = None) -> PictureFolder:
        """Makes the folder, or takes one that holds pictures of an earlier run, which are replaced.

        Raises:
            KontextError: it cannot be made, or holds something else, or lies outside the folder of `result_file`, where
                a report would not read it (`named_folder`).
        """
        if result_file is not None and not root.resolve().is_relative_to(result_file.parent.resolve()):
            raise KontextError(
                f"{root} is outside the folder of {result_file}, where a report reads no pictures: name one in it"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            others = sorted({path.name for path in root.iterdir()} - {SOURCE, REFERENCE, OUTPUTS})
        except OSError as fault:
            raise KontextError(f"cannot make the folder {root}: {fault.strerror}") from None
        if others:
            raise KontextError(
                f"{root} holds {others[0]}, which is no folder of pictures: name another folder"
            )
        return cls(root)

    def add(self, number: int, kind: str, picture: PIL.Image.Image | None) -> None:
        """Writes a picture of the edit `number` that no bundle made for comparison; `kind` is SOURCE or REFERENCE."""
        if picture is not None:
            self.entry(number)[kind] = self.write(number, kind, picture)

    def add_output(self, number: int, name: str, picture: PIL.Image.Image) -> None:
        """Writes the picture of the edit `number` by the bundle or peer `name`, whatever it is called."""
        self.entry(number)[OUTPUTS][name] = self.write(number, f"{OUTPUTS}/{name}", picture)

    def entry(self, number: int) -> dict[str, Any]:
        while len(self.edits) <= number:
            self.edits.append({OUTPUTS: {}})
        return self.edits[number]

    def write(self, number: int, whose: str, picture: PIL.Image.Image) -> str:
        """Returns the picture's name in the folder."""
        name = f"{whose}/{number:04d}.png"
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise KontextError(f"cannot make the folder {path.parent}: {fault.strerror}") from None
        save_picture(picture.convert("RGB"), path, metadata=False)
        return name

    def as_json(self, result_file: Path | None) -> dict[str, Any]:
        """The names for the result: the folder's relative to that of `result_file`, the pictures' in the folder."""
        start = Path() if result_file is None else result_file.parent
        folder = Path(os.path.relpath(self.root.resolve(), start.resolve())).as_posix()
        return {"folder": folder, "edits": self.edits}


def named_folder(file: Path, name: Any) -> Path:
    """The folder of pictures that a result in `file` names. A result may come from anyone, and a report holds what its
    pictures are: they are read from the result's own folder, or one in it.

    Raises:
        OutsideError: the name, or a link, leads elsewhere.
        TypeError: it is no name.
    """
    if not isinstance(name, str):
        raise TypeError("the folder of pictures has no name")
    folder, own = file.parent / name, file.parent.resolve()
    relative = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    if not relative or not folder.resolve().is_relative_to(own):
        raise OutsideError(
            f"{file} names pictures in {name!r:.80}, outside its own folder: put both into one folder, and name that"
        )
    return folder


def read_named(folder: Path, name: Any) -> PIL.Image.Image:
    """A picture that a result names, in RGB.

    Raises:
        KontextError: the name leads out of the folder, or there is no picture.
    """
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise KontextError(f"{name!r} is not the name of a picture in {folder}")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise KontextError(f"{folder / name} is a link that leads out of {folder}")
    return open_picture(folder / name).convert("RGB")
