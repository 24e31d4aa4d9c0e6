"""Writes src/unicode_tables.inc: what the tokenizers need to know of Unicode, as the `tokenizers` package knows it.

`python unicode_tables.py > ../src/unicode_tables.inc`. Each table comes from asking that package about every code
point, so that a prompt in any script gets the same ids; grapheme classes, which nothing there tells, come from `regex`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator

import regex
from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)
"""Composed and decomposed by arithmetic."""

# Without Hangul's syllables, whose class follows from their number.
BREAKS = (
    ("Control", r"\p{GCB=Control}"),
    ("Extend", r"\p{GCB=Extend}"),
    ("ZWJ", r"\p{GCB=ZWJ}"),
    ("Prepend", r"\p{GCB=Prepend}"),
    ("SpacingMark", r"\p{GCB=SpacingMark}"),
    ("RegionalIndicator", r"\p{GCB=Regional_Indicator}"),
    ("L", r"\p{GCB=L}"),
    ("V", r"\p{GCB=V}"),
    ("T", r"\p{GCB=T}"),
    ("Pictographic", r"\p{Extended_Pictographic}"),
)


def matching(pattern: str) -> set[int]:
    """The code points that the package's regular expressions match."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed")
    rest: set[int] = set()
    for start in range(0, len(CODES), 1 << 16):
        chunk = CODES[start : start + (1 << 16)]
        for _, (first, last) in split.pre_tokenize_str("".join(map(chr, chunk))):
            rest.update(chunk[first:last])
    return set(CODES) - rest


def lower_case() -> Iterator[tuple[int, str]]:
    normalize = normalizers.Lowercase().normalize_str
    for code in CODES:
        lower = normalize(chr(code))
        if lower != chr(code):
            yield code, lower


def decompositions() -> dict[int, str]:
    """Full canonical decompositions, Hangul's syllables left out."""
    normalize = normalizers.NFD().normalize_str
    return {
        code: parts for code in CODES if code not in HANGUL and (parts := normalize(chr(code))) != chr(code)
    }


def compositions(decomposed: dict[int, str]) -> Iterator[tuple[int, int, int]]:
    """(first, second, composed)"""
    normalize = normalizers.NFC().normalize_str
    for code, parts in decomposed.items():
        first = normalize(parts[:-1])
        if len(first) == 1 and normalize(parts) == chr(code):
            yield ord(first), ord(parts[-1]), code


def combining_classes(decomposed: dict[int, str]) -> Iterator[tuple[int, int]]:
    """Seen in how decomposition reorders a mark and one mark of each class."""
    normalize = normalizers.NFD().normalize_str
    marks: dict[int, str] = {}
    for known in (
        unicodedata.ucd_3_2_0.combining,
        unicodedata.combining,
    ):  # old marks first: these the package knows
        for code in CODES:
            if code not in decomposed:
                marks.setdefault(known(chr(code)), chr(code))
    del marks[0]
    lowest, high = marks[1], marks[232]
    for code in CODES:
        mark = chr(code)
        if code in decomposed or code in HANGUL:
            continue
        if normalize(mark + lowest) == lowest + mark or normalize(high + mark) == mark + high or mark == high:
            for value, other in marks.items():
                below = normalize(other + mark) != other + mark
                above = normalize(mark + other) != mark + other
                if mark == other or not (below or above):
                    yield code, value
                    break
            else:
                raise SystemExit(f"U+{code:04X} has a combining class that no known mark has")


def ranges(values: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(first, last, value) of runs of one value."""
    result: list[tuple[int, int, int]] = []
    for code, value in sorted(values):
        if result and result[-1][1] == code - 1 and result[-1][2] == value:
            result[-1] = (result[-1][0], code, value)
        else:
            result.append((code, code, value))
    return result


def table(
    kind: str, name: str, rows: Iterable[Iterable[int | str]], form: Callable[[int], str] = hex
) -> None:
    print(f"constexpr {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        entry = " {" + ",".join(form(value) if isinstance(value, int) else value for value in row) + "},"
        if len(line) + len(entry) > 118:
            print(line)
            line = "   "
        line += entry
    print(f"{line}\n}};\n")


def main() -> None:
    print("// Written by tools/unicode_tables.py; do not edit. clang-format off\n")
    for name, pattern in (("letters", r"\p{L}"), ("numbers", r"\p{N}"), ("spaces", r"\s")):
        found = ranges((code, 0) for code in matching(pattern))
        table("Range", name, (row[:2] for row in found))
    lower = dict(lower_case())
    single = ranges((code, ord(to) - code) for code, to in lower.items() if len(to) == 1)
    table("Shift", "lower_shifts", ((first, last, str(by)) for first, last, by in single))
    long = ((code, *map(ord, to)) for code, to in lower.items() if len(to) > 1)
    table("Expansion", "lower_expansions", long)
    decomposed = decompositions()
    table("Expansion", "decompositions", ((code, *map(ord, to)) for code, to in sorted(decomposed.items())))
    table("Composition", "compositions", sorted(compositions(decomposed)))
    table("Class", "combining_classes", ranges(combining_classes(decomposed)))
    breaks = {}
    for name, pattern in BREAKS:
        matches = regex.compile(pattern).match
        breaks.update({code: name for code in CODES if matches(chr(code))})
    names = [name for name, _ in BREAKS]
    found = ranges((code, names.index(name)) for code, name in breaks.items())
    table("Breaking", "breaks", ((first, last, f"Break::{names[value]}") for first, last, value in found))
    for name, value in (("conjunct_consonants", "Consonant"), ("conjunct_linkers", "Linker")):
        matches = regex.compile(rf"\p{{InCB={value}}}").match
        found = ranges((code, 0) for code in CODES if matches(chr(code)))
        table("Range", name, (row[:2] for row in found))


if __name__ == "__main__":
    main()
