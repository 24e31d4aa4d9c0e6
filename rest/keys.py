"""API keys: a file with one in each line, and whether a request has one of them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from ..errors import KontextError
from ..regular_files import read_regular

SHORTEST = 16
MOST_BYTES = 1 << 20


class Keys:
    """Keys by their digests, so that comparing takes the same time whatever is sent."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.digests = [digest(each) for each in keys]

    def allow(self, authorization: str) -> bool:
        """Whether a header `Authorization: Bearer KEY` has a key."""
        scheme, _, key = authorization.partition(" ")
        sent = digest(key.strip())
        matches = [hmac.compare_digest(sent, each) for each in self.digests]  # all, also behind a match
        return scheme.lower() == "bearer" and any(matches)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_keys(path: Path) -> Keys:
    """The keys of a file: one in each line; empty lines and those that begin with # are skipped.

    Raises KontextError if it cannot be read, has no keys, or has one that is too short to be safe; shows none.
    """
    try:
        text = read_regular(path, MOST_BYTES, "a file of API keys").decode("utf-8")
    except UnicodeDecodeError:
        raise KontextError(f"{path} is not text in UTF-8: write one API key in each line") from None
    except OSError as error:
        raise KontextError(f"{path} cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if len(key) < SHORTEST or not key.isascii() or len(key.split()) > 1:
            raise KontextError(
                f"{path}, line {number}: a key has {SHORTEST} or more letters and digits, and no spaces: "
                "`openssl rand -hex 24` makes one"
            )
        found.append(key)
    if not found:
        raise KontextError(f"{path} has no API keys: write one in each line")
    return Keys(found)
