"""Seeded damage: bytes changed without knowing what they mean, JSON values replaced by hostile ones, and fields of
Protocol Buffers dropped, repeated and replaced. The same seed gives the same damage."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

WHOLES = [
    -1,
    0,
    1,
    2,
    3,
    7,
    16,
    255,
    1 << 16,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    1 << 40,
    1 << 53,
    1 << 62,
    1 << 65,
    1 << 70,
]

VALUES: list[Any] = [
    *WHOLES, 0.5, -0.0, 1e-300, 1e30, 1e308, float("nan"), float("inf"), True, False, None,
    "", "x", "x" * 5000, "\ud800", "a\0b", "\n", "../x", "/dev/zero", "weights", ".", "fp32", "int4", "NFKC",
    [], {}, [[]], [{}], [None], [[1 << 40, 1 << 40]], [0, 0], [-1], ["x"] * 300, [[0] * 3] * 300, {"type": "Sequence"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64},
]  # fmt: skip

RAW = [
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"[" + b"[]," * 200_000 + b"[]]",
    b"1" * 5000,
    b"\xff\xfe",
    b"\x00",
    b'"\\ud800"',
    b"NaN",
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        each = stack.pop()
        keys = each if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        for key in keys:
            found.append((each, key))
            stack.append(each[key])
    return found


def damaged_json(value: Any, source: random.Random, most: int = 3) -> Any:
    """A copy of a JSON value with 1 to `most` values replaced, dropped, moved or repeated."""
    value = copy.deepcopy(value)
    for _ in range(source.randint(1, most)):
        found = places(value)
        if not found:
            return source.choice(VALUES)
        where, key = source.choice(found)
        how = source.choice(["value", "value", "value", "number", "drop", "copy", "name", "repeat", "text"])
        old = where[key]
        if how == "number" and type(old) in (int, float):
            where[key] = source.choice(
                [old + 1, old - 1, -old, old * 2, old * 1000, old / 3, 1 << source.randrange(80)]
            )
        elif how == "text" and isinstance(old, str) and old:
            at = source.randrange(len(old))
            where[key] = (
                old[:at] + source.choice(["", "\ud800", "\0", "/", "é", "a" * 300, old]) + old[at + 1 :]
            )
        elif how == "drop":
            del where[key]
        elif how == "copy":
            other, name = source.choice(found)
            where[key] = copy.deepcopy(other[name]) if name in other or isinstance(name, int) else None
        elif how == "name" and isinstance(where, dict):
            where[source.choice(["", "\ud800", "x", "a/../b", key + "x"])] = where.pop(key)
        elif how == "repeat" and isinstance(where, list):
            where[key:key] = [old] * source.choice([1, 2, 600])
        else:
            where[key] = copy.deepcopy(source.choice(VALUES))
    return value


def damaged_text(value: Any, source: random.Random) -> bytes:
    """The JSON text of a damaged value, and now and then damaged itself."""
    text = json.dumps(damaged_json(value, source)).encode()
    if source.random() < 0.1:
        at = source.randrange(len(text) + 1)
        text = text[:at] + source.choice(RAW) + text[at:]
    return damaged_bytes(text, source) if source.random() < 0.1 else text


def damaged_bytes(data: bytes, source: random.Random, most: int = 4) -> bytes:
    result = bytearray(data)
    for _ in range(source.randint(1, most)):
        if not result:
            break
        at, other = source.randrange(len(result)), source.randrange(len(result))
        how = source.choice(["flip", "set", "cut", "insert", "copy", "move", "number"])
        if how == "flip":
            result[at] ^= 1 << source.randrange(8)
        elif how == "set":
            result[at] = source.choice([0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)])
        elif how == "cut":
            del result[at : at + source.choice([1, 2, 8, 100, len(result)])]
        elif how == "insert":
            result[at:at] = source.randbytes(source.choice([1, 4, 16]))
        elif how == "copy":
            result[at : at + 16] = result[other : other + 16]
        elif how == "move":
            result[at:at] = result[other : other + 64]
        else:
            width = source.choice([1, 2, 4, 8])
            number = source.choice(WHOLES) % (1 << 8 * width)
            result[at : at + width] = number.to_bytes(width, "little")
    return bytes(result)


def damaged_safetensors(data: bytes, source: random.Random) -> bytes:
    """A file whose header's JSON is damaged, most often with the length that it then has; or any bytes of it."""
    if source.random() < 0.3:
        return damaged_bytes(data, source)
    length = int.from_bytes(data[:8], "little")
    text = damaged_text(json.loads(data[8 : 8 + length]), source)
    said = len(text) if source.random() < 0.9 else source.choice(WHOLES) % (1 << 64)
    return said.to_bytes(8, "little") + text + data[8 + length :]


# -- Protocol Buffers --

Field = tuple[int, int, bytes]
"""Number, wire type, and the bytes behind the key; of a string or message without its length."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def parsed(data: bytes) -> list[Field] | None:
    """The fields of a message; None if it is none."""
    found: list[Field] = []
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    try:
        while at < len(data):
            key = number()
            kind = key & 7
            if kind == 0:
                start = at
                number()
                found.append((key >> 3, kind, data[start:at]))
                continue
            if kind not in (1, 2, 5) or key >> 3 == 0:
                return None
            size = number() if kind == 2 else 8 if kind == 1 else 4
            if at + size > len(data):
                return None
            found.append((key >> 3, kind, data[at : at + size]))
            at += size
    except IndexError:
        return None
    return found


def written(fields: list[Field]) -> bytes:
    return b"".join(
        varint(number << 3 | kind) + (varint(len(part)) if kind == 2 else b"") + part
        for number, kind, part in fields
    )


def damaged_protobuf(data: bytes, source: random.Random, others: list[bytes] | None = None) -> bytes:
    """A message with a field somewhere in it dropped, repeated, renumbered or replaced; or any bytes of it."""
    fields = parsed(data)
    if not fields or source.random() < 0.05:
        return damaged_bytes(data, source) if data else source.randbytes(4)
    at = source.randrange(len(fields))
    number, kind, part = fields[at]
    if kind == 2 and len(part) > 1 and source.random() < 0.75 and parsed(part) is not None:
        fields[at] = (number, kind, damaged_protobuf(part, source))
        return written(fields)
    how = source.choice(["drop", "repeat", "number", "value", "swap", "bytes"])
    if how == "drop":
        del fields[at]
    elif how == "repeat":
        fields[at:at] = [fields[at]] * source.choice([1, 2, 50])
    elif how == "number":
        fields[at] = (source.choice([1, 4, 5, 6, 7, 11, 12, 13, 14, 15, 22, 25, 100]), kind, part)
    elif how == "swap":
        other = source.randrange(len(fields))
        fields[at], fields[other] = fields[other], fields[at]
    elif kind == 0:
        fields[at] = (number, kind, varint(source.choice(WHOLES) % (1 << 64)))
    elif how == "value":
        texts = [
            b"",
            b"Loop",
            b"If",
            b"Constant",
            b"Expand",
            b"../x",
            b"/dev/zero",
            b"location",
            b"\xff",
            b"x" * 300,
        ]
        fields[at] = (number, kind, source.choice(texts) if kind == 2 else source.randbytes(len(part)))
    else:
        fields[at] = (
            number,
            kind,
            damaged_bytes(part, source)[: len(part)].ljust(len(part), b"\0")
            if kind != 2
            else damaged_bytes(part, source),
        )
    return written(fields)
