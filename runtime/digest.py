"""The digest that pins a bundle: the SHA-256 of its manifest's bytes, which list the SHA-256 of every other file.

It is the root of a Merkle tree of depth one (docs/bundle.md). `sha256sum manifest.json` prints the same number.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ..errors import KontextError

PREFIX = "sha256:"


def digest_of(manifest: bytes) -> str:
    """The digest of a bundle with this manifest, as sha256:<64 hexadecimal digits>."""
    return PREFIX + hashlib.sha256(manifest).hexdigest()


def check_digest(wanted: str, found: str, folder: Path) -> None:
    """Raises KontextError unless the bundle in `folder`, whose digest is `found`, is the one that is `wanted`."""
    if not re.fullmatch(f"{PREFIX}[0-9a-f]{{64}}", wanted):
        raise KontextError(
            f"a digest is {PREFIX} and 64 hexadecimal digits, as kontext-export digest BUNDLE prints it, "
            f"not {wanted[:80]!r}"
        )
    if wanted != found:
        raise KontextError(f"{folder} is not the required bundle: its digest is {found}, not {wanted}")
