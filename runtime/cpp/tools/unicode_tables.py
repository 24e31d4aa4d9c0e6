"""Writes src/unicode_tables.inc: what the tokenizers need to know of Unicode, as the `tokenizers` package knows it.

`python unicode_tables.py > ../src/unicode_tables.inc`. Each table comes from asking that package about every code
point, so that a prompt in any script gets the same ids: its parts go by different versions of Unicode.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)
"""Composed and decomposed by arithmetic."""

BREAKS = ("Control", "Extend", "ZWJ", "Prepend", "SpacingMark", "L", "V", "T", "Pictographic")
"""Classes of grapheme clusters, Hangul's syllables left out. Regional indicators cannot be told from other characters
here, nor in any result: a cluster of one has 4 bytes, of two 8, and the character map treats both character by
character."""
ZWJ = 0x200D


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


def clusters_told() -> normalizers.Precompiled:
    """A normalizer that tells how the package splits a text into grapheme clusters.

    It replaces each cluster of at most 5 bytes by one "R", and the characters of longer ones each by one: the first
    byte of every key is a key of its own here. Line feeds, which are clusters by themselves, stay.
    """
    units = [0] * 768  # a double-array trie: the root, its children at 256 ^ byte, and their values
    units[0] = 256 << 10
    for byte in {*range(1, 256)} - {ord("\n")}:
        at, value = 256 ^ byte, 512 + byte
        units[at] = (at ^ value) << 10 | 1 << 8 | byte
        units[value] = 1 << 31  # offset 0 in the blob of replacements
    trie = struct.pack(f"<{len(units)}I", *units)
    return normalizers.Precompiled(struct.pack("<I", len(trie)) + trie + b"R\0")


def break_classes() -> dict[int, str]:
    """Seen in whether a character joins neighbours of known classes."""
    normalizer = clusters_told()
    codes = [code for code in CODES if code not in HANGUL and code not in (ord("\r"), ord("\n"))]

    def count(before: str, after: str, told: int) -> set[int]:
        """The code points for which `before`, the character and `after` are told by so many letters."""
        text = "\n".join(before + chr(code) + after for code in codes)
        counts = map(len, normalizer.normalize_str(text).split("\n"))
        return {code for code, each in zip(codes, counts, strict=True) if each == told}

    extending = count("a", "", 1) - {ZWJ}
    prepend = count("", "a", 1) - extending - {ZWJ}
    emoji = count("©", "\u200d©\u0300", 5) & extending  # 4 if a spacing mark parts the two
    # With U+0300 behind them the second characters are at most 5 bytes: one letter if they are not joined.
    before_l = count("", "\u1100\u0300", 3) - extending - prepend
    before_v = count("", "\u1161\u0300", 3) - extending - prepend
    before_t = count("", "\u11a8\u0300", 3) - extending - prepend
    apart = {
        code for code in count("", "\u0300\u0300", 2) if code not in extending | {ZWJ}
    }  # as Control is from any mark
    classes = {
        "Control": apart,
        "Extend": emoji,
        "ZWJ": {ZWJ},
        "Prepend": prepend,
        "SpacingMark": extending - emoji,
        "L": before_l,
        "V": before_v - before_l,
        "T": before_t - before_v,
        "Pictographic": count("©\u200d", "", 3) - extending - {ZWJ},
    }
    if sum(map(len, classes.values())) != len(set().union(*classes.values())):
        raise SystemExit("the package's grapheme clusters have classes that are not told apart here")
    return {code: name for name, found in classes.items() for code in found}


def conjuncts(breaks: dict[int, str]) -> dict[str, set[int]]:
    """The consonants and linkers of Indic conjuncts, between known ones."""
    normalizer = clusters_told()
    marks = [code for code, name in breaks.items() if name in ("Extend", "ZWJ")]
    others = [code for code in CODES if code not in breaks and code not in HANGUL and code != ord("\n")]

    def joined(codes: list[int], before: str, after: str) -> set[int]:
        ends = [len(normalizer.normalize_str(before + chr(code) + after)) for code in codes]
        return {code for code, end in zip(codes, ends, strict=True) if end == len(before) + 1 + len(after)}

    return {
        "conjunct_consonants": joined(others, "", "\u094d\u0915\u0300"),
        "conjunct_linkers": joined(marks, "\u0915", "\u0915\u0300"),
    }


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
    breaks = break_classes()
    found = ranges((code, BREAKS.index(name)) for code, name in breaks.items())
    table("Breaking", "breaks", ((first, last, f"Break::{BREAKS[value]}") for first, last, value in found))
    for name, codes in conjuncts(breaks).items():
        table("Range", name, (row[:2] for row in ranges((code, 0) for code in codes)))


if __name__ == "__main__":
    main()
