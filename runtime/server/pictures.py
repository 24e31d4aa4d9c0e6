"""The pictures of a server's request: files or base64 of them, checked, and decoded by what is passed in."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from ...errors import KontextError
from ..images import read_picture
from ..picture_formats import spelled
from ..reference_options import usual_sizes
from . import contract
from .contract import Limits
from .decoding import Decoded

Array = NDArray[Any]

URL_SAFE = bytes.maketrans(b"-_", b"+/")
"""From base64's alphabet for URLs to its usual one (RFC 4648)."""


class Decode(Protocol):
    def __call__(
        self, file: bytes, name: str, formats: Sequence[str], max_pixels: int, reduce: bool
    ) -> Decoded:
        """As `decoding.Decoders.decode`."""


def decode_here(file: bytes, name: str, formats: Sequence[str], max_pixels: int, reduce: bool) -> Decoded:
    """Decodes in this process, without a limit of time."""
    picture = read_picture(
        io.BytesIO(file), name, formats=tuple(formats), max_pixels=max_pixels, reduce=reduce
    )
    return Decoded(picture)


def read_pictures(arrays: Mapping[str, Array], limits: Limits, decode: Decode = decode_here) -> list[Decoded]:
    """The decoded references of a request whose arrays are checked.

    Args:
        arrays: name → array of `contract.INPUTS`.
        limits: of one request; they hold for what the files' headers say, before each is decoded.
        decode: what decodes a file.

    Raises:
        KontextError: too many, too large, no pictures, or as `decode` raises it.
    """
    array = arrays.get(contract.IMAGES.name)
    files = (
        [] if array is None else [picture_bytes(value, i) for i, value in enumerate(array.ravel().tolist())]
    )
    if len(files) > limits.max_references:
        raise KontextError(
            f"IMAGES has {len(files)} pictures; at most {limits.max_references} are taken here"
        )
    reduce = contract.SIZE.name not in arrays and usual_sizes(
        *(read_word(arrays, each) for each in (contract.REFERENCE_SIZE, contract.REFERENCE_METHOD))
    )
    pictures, left = [], limits.max_megapixels * 1_000_000
    for i, data in enumerate(files):
        pictures.append(decode(data, f"IMAGES[{i}]", contract.PICTURE_FORMATS, left, reduce))
        left -= pictures[-1].picture.width * pictures[-1].picture.height
    return pictures


def read_word(arrays: Mapping[str, Array], tensor: contract.Tensor) -> str | None:
    """A word among the inputs; None if it is not given or empty."""
    if tensor.name not in arrays:
        return None
    value = arrays[tensor.name].flat[0]
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)) or None


def picture_bytes(value: object, index: int) -> bytes:
    """The bytes of a picture's file. It may be base64, wrapped or not, of either alphabet, and a data: URL."""
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    if is_file(data):
        return data
    where = f"IMAGES[{index}]"
    if data[:5].lower() == b"data:":
        head, comma, data = data.partition(b",")
        if not comma or not head.lower().endswith(b";base64"):
            raise KontextError(f"{where} is a data: URL without base64: send data:image/png;base64,…")
    text = b"".join(data.split()).translate(URL_SAFE).rstrip(b"=")
    try:
        file = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        file = b""
    if not is_file(file):
        raise KontextError(f"{where} is neither a {spelled(contract.PICTURE_FORMATS)} file nor base64 of one")
    return file


def is_file(data: bytes) -> bool:
    """Whether these bytes start as a PNG, JPEG or WebP file does."""
    return data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF"))


def answers_in_base64(arrays: Mapping[str, Array], asked: object) -> bool:
    """Whether the picture is sent as base64: what the request's parameter says, else unless a reference came as the
    bytes of a file. JSON cannot hold those, so its clients always get what they can read."""
    if asked is not None:
        return asked is True
    given = arrays.get(contract.IMAGES.name)
    return given is None or not any(
        isinstance(each, bytes) and is_file(each) for each in given.ravel().tolist()
    )
