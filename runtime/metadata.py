"""What made a picture, as JSON that is enough to make it again, and as other programs read it.

`edit_metadata` writes the JSON of an edit; `read_metadata` checks what anybody may have written into a file.
docs/commands.md describes the keys.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import KontextError
from ..installation import DISTRIBUTION, VERSION
from ..regular_files import parse_json
from .fields import shown
from .manifest_ranges import RANGES
from .noise import LARGEST_SEED
from .reference_options import REFERENCE_METHODS, SIZE_RULES, one_of

KEY = "kontext"
"""The PNG chunk, and the key of a picture's `info`."""

FORMAT = 1
"""Of the metadata; a reader refuses a higher one."""

MOST_BYTES = 1 << 20
"""Of metadata that is read. An edit's own has less than 1 kB beside its prompt."""

MOST_REFERENCES = 1000


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA that the pipeline was given beside its bundle."""

    file: str
    """Its name without the folder."""
    sha256: str
    weight: float


@dataclass(frozen=True)
class Running:
    """What runs a pipeline's networks, as `--backend`, `--device` and the backend's options name it."""

    backend: str
    device: str
    options: Mapping[str, Any]
    """Those that are not the backend's defaults."""
    loras: tuple[LoadedLora, ...] = ()


@dataclass(frozen=True)
class PictureDigest:
    """An input picture by its decoded pixels: upright and in 8-bit RGB for a reference."""

    sha256: str
    """64 hexadecimal digits: of the pixels' bytes, row by row."""
    size: tuple[int, int]

    @classmethod
    def of(cls, picture: Image.Image) -> PictureDigest:
        return cls(hashlib.sha256(picture.tobytes()).hexdigest(), picture.size)


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """One line of ASCII, which every format of metadata holds."""
    return json.dumps(metadata, separators=(", ", ": "))


def infotext(metadata: Mapping[str, Any]) -> str:
    """The text that AUTOMATIC1111's web UI writes as `parameters`, and Forge, Civitai and others read: the prompt, a
    line with the negative one, and a line of settings. As in Forge, "CFG scale" is that of two passes, and guidance is
    "Distilled CFG Scale"."""
    width, height = metadata["size"]
    settings = {
        "Steps": metadata["steps"],
        "Sampler": "Euler",
        "CFG scale": f"{metadata.get('true_cfg') or 1:g}",
        "Distilled CFG Scale": f"{metadata['guidance']:g}",
        "Seed": metadata["seed"],
        "Size": f"{width}x{height}",
        "Model hash": metadata["bundle"]["digest"].partition(":")[2][:10],
        "Model": metadata["bundle"]["name"],
        "Denoising strength": metadata.get("strength"),
        "Mask blur": metadata.get("mask_blur"),
        "Version": f"{DISTRIBUTION} {metadata['version']}",
    }
    line = ", ".join(
        f"{name}: {quoted(str(value))}" for name, value in settings.items() if value not in (None, "")
    )
    negative = metadata.get("negative_prompt")
    return "\n".join(filter(None, (metadata["prompt"], negative and f"Negative prompt: {negative}", line)))


def quoted(value: str) -> str:
    """A value of the line of settings, as JSON where it would end the setting before its end."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


@dataclass(frozen=True)
class Metadata:
    """Metadata that are checked."""

    settings: Mapping[str, Any]
    """Keyword of `Pipeline.edit` → value."""
    pictures: Mapping[str, Sequence[PictureDigest]]
    """Key of `PICTURES` → the input pictures, in order; one of those that there can be only one of."""
    bundle: str
    """Its name."""
    digest: str
    running: Running
    version: str


def read_metadata(text: str, name: str) -> Metadata:
    """The metadata in `text`, which anybody may have written.

    Args:
        text: JSON.
        name: the file's, for messages.

    Raises:
        KontextError: no JSON, not metadata of this format, or a value is missing or none that an edit takes.
    """
    where = f"{name}: its metadata"
    if len(text) > MOST_BYTES:
        raise KontextError(f"{where} are larger than {MOST_BYTES >> 20} MiB")
    try:
        data = parse_json(text)
    except ValueError as error:
        raise KontextError(f"{where} are not JSON: {error}") from None
    if not isinstance(data, dict):
        raise KontextError(f"{where} are not a JSON object")

    def read(name: str, reader: Callable[[Any], Any], entry: Mapping[str, Any] = data) -> Any:
        if name not in entry:
            raise KontextError(f"{where} have no {name}")
        try:
            return reader(entry[name])
        except ValueError as error:
            raise KontextError(f"{where} say {name} {shown(entry[name])}: it must be {error}") from None

    version = read("format", whole(1, 1 << 31))
    unknown = sorted(data.keys() - {*SETTINGS, *PICTURES, "format", "bundle", "running", "version"})
    if version > FORMAT or unknown:
        what = f"format {version}" if version > FORMAT else f"{unknown[0]!r:.40}"
        raise KontextError(f"{where} have {what}, which {DISTRIBUTION} {VERSION} does not know: update it")
    bundle, running = read("bundle", table), read("running", table)
    return Metadata(
        settings={
            key: read(key, reader) for key, reader in SETTINGS.items() if key in data or key in REQUIRED
        },
        pictures={
            key: read(key, reader) for key, reader in PICTURES.items() if key in data or key in REQUIRED
        },
        bundle=read("name", words, bundle),
        digest=read("digest", words, bundle),
        running=Running(
            read("backend", words, running),
            read("device", words, running),
            read("options", options, running),
            read("loras", loras, running) if "loras" in running else (),
        ),
        version=read("version", words),
    )


def table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > 100:
        raise ValueError("an object of at most 100 options")
    for each in value.values():
        if isinstance(each, str):
            words(each)
        elif not isinstance(each, bool):
            number(each)
    return value


def loras(value: Any) -> tuple[LoadedLora, ...]:
    kind = "a list of at most 100 LoRAs' file, sha256 and weight"
    if not isinstance(value, list) or len(value) > 100 or not all(isinstance(each, dict) for each in value):
        raise ValueError(kind)
    try:
        return tuple(
            LoadedLora(words(each["file"]), words(each["sha256"]), number(each["weight"])) for each in value
        )
    except KeyError:
        raise ValueError(kind) from None


def prose(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def words(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("a text of at most 200 characters")
    return value


def whole(least: float, most: float) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return read


def number(value: Any) -> float:
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError("a finite number")


def share(value: Any) -> float:
    if not 0 < number(value) <= 1:
        raise ValueError("a number above 0, and at most 1")
    return float(value)


def switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def side(value: Any) -> int:
    return whole(1, RANGES["preferred_sizes"][1])(value)


def size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("a width and a height")
    return side(value[0]), side(value[1])


def reference_method(value: Any) -> str:
    if value not in REFERENCE_METHODS:
        raise ValueError(one_of(REFERENCE_METHODS))
    return str(value)


def reference_size(value: Any) -> str | tuple[int, int]:
    if isinstance(value, list):
        return size(value)
    if value not in SIZE_RULES:
        raise ValueError(one_of((*SIZE_RULES, "a width and a height")))
    return str(value)


def digests(value: Any) -> list[PictureDigest]:
    kind = f"a list of at most {MOST_REFERENCES} pictures' sha256 and size"
    if not isinstance(value, list) or len(value) > MOST_REFERENCES:
        raise ValueError(kind)
    found = []
    for each in value:
        if not isinstance(each, dict) or not re.fullmatch("[0-9a-f]{64}", str(each.get("sha256"))):
            raise ValueError(kind)
        sides = each.get("size")
        if not isinstance(sides, list) or len(sides) != 2 or any(type(side) is not int for side in sides):
            raise ValueError(kind)
        found.append(PictureDigest(each["sha256"], (sides[0], sides[1])))
    return found


def one_digest(value: Any) -> list[PictureDigest]:
    try:
        return digests([value])
    except ValueError:
        raise ValueError("a picture's sha256 and size") from None


SETTINGS: dict[str, Callable[[Any], Any]] = {
    "prompt": prose,
    "seed": whole(0, LARGEST_SEED),
    "steps": whole(*RANGES["steps"]),
    "guidance": number,
    "size": size,
    "reference_method": reference_method,
    "reference_size": reference_size,
    "mask_blur": whole(0, 1 << 16),
    "strength": share,
    "paste_back": switch,
    "negative_prompt": prose,
    "true_cfg": number,
    "cfg_until": share,
}
"""Key, and keyword of `Pipeline.edit`, → what checks its value: returns what an edit takes, or raises ValueError with
what would be right."""

PICTURES = {"references": digests, "mask": one_digest, "init_image": one_digest}
"""Keys of input pictures, which an edit takes again as pictures."""

REQUIRED = ("prompt", "seed", "steps", "guidance", "size", "references")
"""Without the others an edit has its defaults."""
