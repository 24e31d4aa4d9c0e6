"""The pictures of a server's request: files or base64 of them, checked, and decoded by what is passed in."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ...errors import KontextError
from ..images import read_picture
from ..masks import to_grey
from ..picture_formats import spelled
from ..reference_options import usual_sizes
from . import contract
from .contract import Limits
from .decoding import Decoded

Array = NDArray[Any]

URL_SAFE = bytes.maketrans(b"-_", b"+/")
"""From base64's alphabet for URLs to its usual one (RFC 4648)."""


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of a request; the mask is grey."""

    references: tuple[Decoded, ...] = ()
    init_image: Decoded | None = None
    mask: Decoded | None = None

    @property
    def warnings(self) -> list[str]:
        """What the caller is warned of."""
        given = [*self.references, *filter(None, (self.init_image, self.mask))]
        return [text for each in given for text in each.warnings]


class Decode(Protocol):
    def __call__(
        self,
        file: bytes,
        name: str,
        formats: Sequence[str],
        max_pixels: int,
        reduce: bool,
        mask: bool = False,
    ) -> Decoded:
        """As `decoding.Decoders.decode`."""


def decode_here(
    file: bytes,
    name: str,
    formats: Sequence[str],
    max_pixels: int,
    reduce: bool,
    mask: bool = False,
) -> Decoded:
    """Decodes in this process, without a limit of time."""
    picture = read_picture(
        io.BytesIO(file), name, formats=tuple(formats), max_pixels=max_pixels, reduce=reduce
    )
    return Decoded(to_grey(picture) if mask else picture)


def read_pictures(arrays: Mapping[str, Array], limits: Limits, decode: Decode = decode_here) -> Pictures:
    """The decoded pictures of a request whose arrays are checked.

    Args:
        arrays: name → array of `contract.INPUTS`.
        limits: of one request; they hold for what the files' headers say, before each is decoded.
        decode: what decodes a file.

    Raises:
        KontextError: too many, too large, no pictures, or as `decode` raises it.
    """
    files = {tensor.name: picture_files(arrays, tensor) for tensor in contract.PICTURES}
    count = len(files[contract.IMAGES.name])
    if count > limits.max_references:
        raise KontextError(f"IMAGES has {count} pictures; at most {limits.max_references} are taken here")
    reduce = contract.SIZE.name not in arrays and usual_sizes(
        *(read_word(arrays, each) for each in (contract.REFERENCE_SIZE, contract.REFERENCE_METHOD))
    )
    left = limits.max_megapixels * 1_000_000
    decoded: dict[str, list[Decoded]] = {}
    for tensor_name, each in files.items():
        mask = tensor_name == contract.MASK.name
        reducing = reduce and not mask  # a mask's blur is in its own pixels
        decoded[tensor_name] = []
        for name, data in each.items():
            found = decode(data, name, contract.PICTURE_FORMATS, left, reducing, mask)
            left -= found.picture.width * found.picture.height
            decoded[tensor_name].append(found)
    references, init_images, masks = decoded.values()
    return Pictures(tuple(references), next(iter(init_images), None), next(iter(masks), None))


def picture_files(arrays: Mapping[str, Array], tensor: contract.Tensor) -> dict[str, bytes]:
    """What messages call each picture of an input → its file."""
    values = arrays[tensor.name].ravel().tolist() if tensor.name in arrays else []
    several = tensor.shape == (-1,)
    names = [f"{tensor.name}[{i}]" if several else tensor.name for i in range(len(values))]
    return {name: picture_bytes(value, name) for name, value in zip(names, values, strict=True)}


def read_word(arrays: Mapping[str, Array], tensor: contract.Tensor) -> str | None:
    """A word among the inputs; None if it is not given or empty."""
    if tensor.name not in arrays:
        return None
    value = arrays[tensor.name].flat[0]
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)) or None


def picture_bytes(value: object, where: str) -> bytes:
    """The bytes of a picture's file; messages call it `where`.

    It may be base64, wrapped or not, of either alphabet, and a data: URL.
    """
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    if is_file(data):
        return data
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
    """Whether the picture is sent as base64: what the request's parameter says, else unless one came as the
    bytes of a file. JSON cannot hold those, so its clients always get what they can read."""
    if asked is not None:
        return asked is True
    given = [
        value
        for each in contract.PICTURES
        if each.name in arrays
        for value in arrays[each.name].ravel().tolist()
    ]
    return not any(isinstance(each, bytes) and is_file(each) for each in given)
