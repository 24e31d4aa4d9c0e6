"""Reads a Hugging Face `tokenizers` file that may be anyone's: of a bounded size, with components whose time and memory
are bounded by the prompt's length, and with the library's panics as errors.

The C++ runtime has the same limits (runtime/cpp/src/tokenizer_limits.hpp), and reads fewer components.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KontextError
from ..regular_files import MAX_JSON_BYTES, MAX_JSON_VALUES, read_regular, separators

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_COMPONENTS = 32
"""Normalizers, and pre-tokenizers, in all. CLIP has three and two."""

MAX_GROWTH = 64
"""Characters that normalizers and pre-tokenizers may make of one. T5's make 36: the longest of NFKC's replacements has
18, and a mark may come before it."""

BYTE_LEVEL_GROWTH = 4
"""A character for each of its bytes in UTF-8."""

MAX_PATTERN = 1000
"""Characters of a regular expression. CLIP's has 90."""

MAX_PIECE = 1000
"""Characters of a piece of Unigram's vocabulary. T5's longest has 16; the library keeps pieces in a tree whose depth is
their length, and takes it down by recursion, which ends the process."""

LONG_PIECE = re.compile(rb'\[\s*"(?:[^"\\]|\\.){%d}' % (MAX_PIECE + 1), re.DOTALL)
"""In the bytes of a file: a piece begins its array."""

ESCAPED = re.compile(r"\\.", re.DOTALL)
CLASS = re.compile(r"\[[^\[\]]*\]")
REPEATED_GROUP = re.compile(r"\)[*+?{]")
REFERENCE = re.compile(r"\\[1-9kg]")
"""How long these take may be exponential in the prompt's length."""


Read = Callable[[Path, int, str], bytes]
"""As `read_regular`: reads a file of at most so many bytes, which should be of a kind."""


def load_tokenizer(path: Path, read: Read = read_regular) -> Tokenizer:
    """The tokenizer in a file, as it is there.

    Raises:
        KontextError: it cannot be read, is no tokenizer, or has parts that could take any time or memory.
    """
    from tokenizers import Tokenizer

    try:
        data = read(path, MAX_JSON_BYTES, "a tokenizer")
        if separators(data) >= MAX_JSON_VALUES:
            raise KontextError(f"{path} is not a tokenizer: it has more than {MAX_JSON_VALUES:,} values")
        if LONG_PIECE.search(data):
            raise KontextError(
                f"{path} is not a tokenizer: it has a piece of more than {MAX_PIECE:,} characters"
            )
        with library_errors(f"{path} is not a tokenizer"):
            tokenizer = Tokenizer.from_buffer(data)
            parts = [
                None if part is None else json.loads(part.__getstate__())
                for part in (tokenizer.normalizer, tokenizer.pre_tokenizer)
            ]
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    check_components(parts, f"{path} is not a tokenizer that is read here")
    return tokenizer


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """A context in which whatever the `tokenizers` library raises becomes a KontextError that begins with `what`: plain
    Exceptions, and panics of its Rust code, which are no Exceptions. Rust prints a panic on stderr before."""
    try:
        yield
    except KontextError:
        raise
    except Exception as error:
        raise KontextError(f"{what}: {shortened(error)}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # it has no public name
            raise
        raise KontextError(f"{what}: {shortened(error)}") from None


def shortened(error: BaseException) -> str:
    return f"{' '.join(str(error).split()):.200}"


def check_components(parts: Sequence[Mapping[str, Any] | None], what: str) -> None:
    """Raises KontextError, which begins with `what`, if text could grow or be searched without bounds.

    Args:
        parts: the settings of the normalizer and of the pre-tokenizer, as in the file.
    """
    growth = 1
    for part in parts:
        steps = list(leaves(part))
        if len(steps) > MAX_COMPONENTS:
            raise KontextError(f"{what}: it has more than {MAX_COMPONENTS} steps")
        for step in steps:
            growth *= growth_of(step)
            pattern = step.get("pattern")
            if isinstance(pattern, dict) and not is_plain(str(pattern.get("Regex", ""))):
                raise KontextError(f"{what}: its pattern {pattern['Regex']!r:.60} may take forever")
            if growth > MAX_GROWTH:
                raise KontextError(f"{what}: its {step['type']} could make a prompt {growth:,} times as long")


def leaves(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The settings of all components, those of sequences in their place."""
    if part is None:
        return
    inner = part.get("normalizers", part.get("pretokenizers"))
    if part.get("type") == "Sequence" and isinstance(inner, list):
        for each in inner:
            yield from leaves(each)
    else:
        yield part


def growth_of(step: Mapping[str, Any]) -> int:
    """Characters that a component may make of one. What changes a text only once, such as NFKC, counts as 1."""
    kind = step.get("type")
    if kind == "Replace":
        content, pattern = len(step["content"]), step["pattern"]
        # A regular expression may match between any two characters.
        return 1 + content if "Regex" in pattern else max(1, -(-content // max(1, len(pattern["String"]))))
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Precompiled":
        return longest_replacement(base64.b64decode(step["precompiled_charsmap"]))
    return BYTE_LEVEL_GROWTH if kind == "ByteLevel" else 1


def longest_replacement(charsmap: bytes) -> int:
    """Characters of the longest text in SentencePiece's character map: a trie of so many bytes, then NUL-terminated
    texts."""
    start = 4 + int.from_bytes(charsmap[:4], "little")
    texts = charsmap[start:].split(b"\0")
    return max(1, *(len(text.decode("utf-8", "replace")) for text in texts))


def is_plain(pattern: str) -> bool:
    """Whether a regular expression is short and repeats no group."""
    if len(pattern) > MAX_PATTERN:
        return False
    bare = CLASS.sub("c", ESCAPED.sub("e", pattern))
    return not REPEATED_GROUP.search(bare) and not REFERENCE.search(pattern)
