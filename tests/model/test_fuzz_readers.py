"""Thousands of damaged headers for both readers of weight files: each is a clear error or a valid file, and
takes no more memory than the file has bytes, give or take.

The same headers on every run: `derandomize` derives them from the test's own code.
"""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.gguf_file import open_gguf  # noqa: E402
from kontext.model.safetensors_file import open_safetensors  # noqa: E402
from kontext.model.weight_files import open_weight_file  # noqa: E402

EXAMPLES = 1500
"""Per test; 1500 take 4 s of an idle core."""

ALLOWED = 24 << 20
"""Bytes beyond the file's size: dequantization works on pieces of 1 MB and has some of them."""

FUZZING = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)

LARGE = st.integers(0, (1 << 16) - 1)
"""A position, used modulo the length."""

DAMAGE = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "insert", "copy", "repeat"]), LARGE, LARGE), max_size=2
)


def damaged(data: bytes, damage: list[tuple[str, int, int]]) -> bytes:
    """`data` with bytes changed, without knowing what they mean."""
    result = bytearray(data)
    for how, first, second in damage:
        if not result:
            break
        at, other = first % len(result), second % len(result)
        if how == "flip":
            result[at] ^= 1 << second % 8
        elif how == "set":
            result[at : at + 1 + second % 8] = bytes([second >> 8]) * (1 + second % 8)
        elif how == "cut":
            del result[at : len(result) if second % 2 else at + 1 + second % 32]
        elif how == "insert":
            result[at:at] = bytes([second >> 8]) * (second % 32)
        elif how == "copy":
            piece = result[other : other + 16]
            result[at : at + len(piece)] = piece
        else:
            result[at:at] = result[other : other + 64]
    return bytes(result)


class Judge:
    """Reads files with `read`, and checks that results are valid and errors are one clear line."""

    def __init__(self, path: Path, read: Callable) -> None:
        self.path = path
        self.read = read
        self.verdicts: Counter[str] = Counter()

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        message = ""
        tracemalloc.start()
        try:
            self.check(len(data))
        except KontextError as fault:
            message = str(fault)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        self.verdicts["refused" if message else "valid"] += 1
        if message:
            assert str(self.path) in message
            assert "\n" not in message
            message.encode()  # it can be printed
        assert peak < len(data) + ALLOWED

    def check(self, size: int) -> None:
        header = self.read(self.path)
        stop = 0
        for name, info in sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
            assert info.name == name
            assert stop <= info.start <= info.stop <= size
            stop = info.stop
            # A format of 1.6 bits makes 5 weights of a byte: nothing here is large.
            assert math.prod(info.shape) <= 6 * size
            assert tuple(info.read().shape) == info.shape

    def saw_both(self) -> None:
        """Mutations that are all refused, or all harmless, test little."""
        assert min(self.verdicts["valid"], self.verdicts["refused"]) > EXAMPLES // 50, self.verdicts


# -- GGUF: a file as a list of fields, each with struct's code --

Field = tuple[str, int | bytes]

NUMBERS = [0, 1, 2, 7, 31, 32, 255, 256, 1 << 16, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 60, 1 << 63, -1]


def string(value: bytes) -> list[Field]:
    return [("Q", len(value)), ("s", value)]


def tensor(name: bytes, dims: list[int], kind: int, offset: int) -> list[Field]:
    return [*string(name), ("I", len(dims)), *(("Q", n) for n in dims), ("I", kind), ("Q", offset)]


GGUF: list[Field] = [
    *[("s", b"GGUF"), ("I", 3), ("Q", 4), ("Q", 5)],
    *[*string(b"general.architecture"), ("I", 8), *string(b"flux")],
    *[*string(b"general.alignment"), ("I", 4), ("I", 32)],
    *[*string(b"comfy.gguf.orig_shape.b"), ("I", 9), ("I", 5), ("Q", 3), ("I", 2), ("I", 8), ("I", 16)],
    *[*string(b"tokens"), ("I", 9), ("I", 8), ("Q", 3), *string(b"a"), *string(b""), *string(b"\xff")],
    *[*string(b"split.count"), ("I", 2), ("H", 1)],
    *tensor(b"a", [4, 3], 0, 0),  # F32, 48 bytes
    *tensor(b"b", [256], 12, 64),  # Q4_K, 144 bytes
    *tensor(b"c", [5], 30, 224),  # BF16, 10 bytes
    *tensor(b"d", [64, 2], 8, 256),  # Q8_0, 136 bytes
]
GGUF_DATA = bytes(range(197)) * 2 + bytes(22)
"""416 bytes: the last tensor with its padding."""


def gguf_bytes(fields: list[Field]) -> bytes:
    widths = {"Q": 64, "I": 32, "H": 16}
    header = b"".join(
        value if isinstance(value, bytes) else struct.pack(f"<{code}", value % (1 << widths[code]))
        for code, value in fields
    )
    return header + bytes(-len(header) % 32) + GGUF_DATA


@pytest.fixture
def gguf_judge(tmp_path: Path) -> Judge:
    judge = Judge(tmp_path / "a.gguf", open_gguf)
    judge(gguf_bytes(GGUF))
    assert judge.verdicts == {"valid": 1}
    return judge


def test_gguf_with_bytes_changed(gguf_judge: Judge) -> None:
    @FUZZING
    @given(damage=DAMAGE)
    def fuzz(damage: list[tuple[str, int, int]]) -> None:
        gguf_judge(damaged(gguf_bytes(GGUF), damage))

    fuzz()
    gguf_judge.saw_both()


def test_gguf_with_fields_changed(gguf_judge: Judge) -> None:
    step = st.tuples(
        st.sampled_from(["number", "number", "number", "drop", "repeat", "swap"]),
        LARGE,
        LARGE,
        st.sampled_from(NUMBERS),
    )

    @FUZZING
    @given(steps=st.lists(step, min_size=1, max_size=3))
    def fuzz(steps: list[tuple[str, int, int, int]]) -> None:
        fields = list(GGUF)
        for how, first, second, number in steps:
            at, other = first % len(fields), second % len(fields)
            if how == "number":
                numbers = [i for i, field in enumerate(fields) if field[0] != "s"]
                at = numbers[first % len(numbers)]
                fields[at] = (fields[at][0], number)
            elif how == "drop":
                del fields[at]
            elif how == "repeat":
                fields[at:at] = fields[other : other + 1 + number % 12]
            else:
                fields[at], fields[other] = fields[other], fields[at]
        gguf_judge(gguf_bytes(fields))

    fuzz()
    # A changed field is nearly always refused; what is left are values of metadata that do not matter.
    assert gguf_judge.verdicts["valid"] > 10
    assert gguf_judge.verdicts["refused"] > EXAMPLES // 2


# -- safetensors: a header as JSON texts, so that any nonsense may stand for a value --

NONSENSE = [
    *["null", "true", "-1", "0", "-0", "0.0", "NaN", "Infinity", "1e999", '"F32"', '"F8_E4M3"', '"BOOL"'],
    *['"F31"', '"\\ud800"', '"\\n"', "[]", "{}", "[0]", "[0, 4]", "[4, 0]", "[true, 4]", "[null]", '["4"]'],
    *[str(n) for n in (1 << 31, (1 << 62) - 1, 1 << 62, 1 << 63, (1 << 64) - 1, -(1 << 63))],
    *[f"[{n}]" for n in (-1, 1 << 31, (1 << 62) - 1, (1 << 64) - 1)],
    *[f"[0, {n}]" for n in (-1, 1 << 31, (1 << 62) - 1, (1 << 64) - 1)],
    *["9" * 5000, "[" * 3000, "[" * 300 + "]" * 300, "[" * 900 + "]" * 900, '{"a":' * 900 + "0" + "}" * 900],
    *["[1" + ",1" * 70 + "]", "[0" + f",{1 << 61}" * 3000 + "]"],
]
EMPTY_SHAPES = [
    "[0]",
    "[0, 5]",
    f"[0, {1 << 61}, {1 << 61}]",
    f"[{1 << 61}, 0, 4, 4]",
    "[" + "0, " * 99 + "0]",
]
Entry = dict[str, str]

SAFETENSORS: list[tuple[str, Entry | str]] = [
    ("__metadata__", '{"format": "pt"}'),
    ("a", {"dtype": '"F32"', "shape": "[3, 2]", "data_offsets": "[0, 24]"}),
    ("b", {"dtype": '"BF16"', "shape": "[4]", "data_offsets": "[24, 32]"}),
    ("c", {"dtype": '"U8"', "shape": "[]", "data_offsets": "[32, 33]"}),
    ("d", {"dtype": '"F8_E4M3"', "shape": "[1, 7]", "data_offsets": "[33, 40]"}),
]


def safetensors_bytes(entries: list[tuple[str, Entry | str]]) -> bytes:
    texts = []
    for name, entry in entries:
        if not isinstance(entry, str):
            entry = "{" + ", ".join(f'"{key}": {value}' for key, value in entry.items()) + "}"
        texts.append(f"{json.dumps(name)}: {entry}")
    raw = ("{" + ", ".join(texts) + "}").encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(range(40))


def test_safetensors(tmp_path: Path) -> None:
    judge = Judge(tmp_path / "a.safetensors", open_safetensors)
    judge(safetensors_bytes(SAFETENSORS))
    assert judge.verdicts == {"valid": 1}
    step = st.tuples(
        st.sampled_from(["value", "entry", "drop", "repeat", "swap", "empty"]),
        st.integers(0, 9),
        st.integers(0, 9),
        LARGE,
    )

    @FUZZING
    @given(
        steps=st.lists(step, max_size=3),
        damage=DAMAGE,
        length=st.none() | st.sampled_from([0, 1, 1 << 31, 1 << 63, (1 << 64) - 1]) | st.integers(0, 400),
    )
    def fuzz(
        steps: list[tuple[str, int, int, int]], damage: list[tuple[str, int, int]], length: int | None
    ) -> None:
        entries = list(SAFETENSORS)
        for how, first, second, choice in steps:
            at, other = first % len(entries), second % len(entries)
            name, entry = entries[at]
            nonsense = NONSENSE[choice % len(NONSENSE)]
            if how == "value" and not isinstance(entry, str):
                key = list(entry)[second % len(entry)]
                entries[at] = (name, {**entry, key: nonsense})
            elif how == "entry":
                entries[at] = (name, nonsense)
            elif how == "drop" and len(entries) > 1:
                del entries[at]
            elif how == "repeat":
                entries.insert(at, entries[other] if choice % 2 else (f"new {choice}", entries[other][1]))
            elif how == "swap":
                entries[at], entries[other] = entries[other], entries[at]
            elif how == "empty":
                shape = EMPTY_SHAPES[choice % len(EMPTY_SHAPES)]
                offset = (0, 24, 32, 33, 40)[second % 5]
                empty = {"dtype": '"F32"', "shape": shape, "data_offsets": f"[{offset}, {offset}]"}
                entries.append((f"empty {choice}", empty))
        data = safetensors_bytes(entries)
        if length is not None:
            data = length.to_bytes(8, "little") + data[8:]
        judge(damaged(data, damage))

    fuzz()
    judge.saw_both()


# -- safetensors with quantized weights: fields of the header and bytes of the notes changed --


def packed_file() -> list[tuple[str, str, list[int], bytes]]:
    """Name, number format, shape and bytes of the tensors of one module in each format that is decoded."""

    def note(format: str, **keys: object) -> tuple[str, str, list[int], bytes]:
        text = json.dumps({"format": format, **keys}).encode()
        return "comfy_quant", "U8", [len(text)], text

    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]}
    nested = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    text = json.dumps({**state, **nested}).encode()
    one, some = struct.pack("<f", 0.5), bytes(range(48, 112))
    modules = {
        "fp8": [
            ("weight", "F8_E4M3", [2, 32], some),
            ("weight_scale", "F32", [2], one * 2),
            note("float8_e4m3fn"),
        ],
        "old": [("weight", "F8_E5M2", [2, 32], some), ("scale_weight", "F32", [], one)],
        "int8": [
            ("weight", "I8", [2, 32], some),
            ("weight_scale", "F32", [2, 1], one * 2),
            note("int8_tensorwise"),
        ],
        "nvfp4": [
            ("weight", "U8", [2, 32], some),
            ("weight_scale", "F8_E4M3", [128, 4], some * 8),
            ("weight_scale_2", "F32", [], one),
            note("nvfp4", group_size=16),
        ],
        "mxfp8": [
            ("weight", "F8_E4M3", [2, 32], some),
            ("weight_scale", "U8", [128, 4], some * 8),
            note("mxfp8"),
        ],
        "llm": [
            ("weight", "I8", [2, 32], some),
            ("SCB", "F32", [2], one * 2),
            ("weight_format", "U8", [], b"\0"),
        ],
        "nf4": [
            ("weight", "U8", [128, 1], some * 2),
            ("weight.absmax", "U8", [4], some[:4]),
            ("weight.quant_map", "F32", [16], one * 16),
            ("weight.nested_absmax", "F32", [1], one),
            ("weight.nested_quant_map", "F32", [256], one * 256),
            ("weight.quant_state.bitsandbytes__nf4", "U8", [len(text)], text),
        ],
    }
    return [
        (f"{module}.{name}", dtype, shape, data)
        for module, tensors in modules.items()
        for name, dtype, shape, data in tensors
    ]


PACKED = packed_file()
OTHERS = [*(dtype for _, dtype, _, _ in PACKED), "F4", "F64", "BOOL", "F8_E8M0"]


def packed_bytes(tensors: list[tuple[str, str, list[int], bytes]], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, dtype, shape, part in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


class DecodingJudge(Judge):
    def check(self, size: int) -> None:
        for name, info in self.read(self.path).tensors.items():
            assert info.name == name
            assert math.prod(info.shape) <= 2 * size
            assert tuple(info.read().shape) == info.shape


def test_quantized_safetensors(tmp_path: Path) -> None:
    judge = DecodingJudge(tmp_path / "a.safetensors", open_weight_file)
    judge(packed_bytes(PACKED, {}))
    assert judge.verdicts == {"valid": 1}
    how = st.sampled_from(["dtype", "flatten", "fold", "drop", "rename", "note", "header", "bytes"])
    step = st.tuples(how, LARGE, LARGE, LARGE)

    @settings(FUZZING, max_examples=EXAMPLES // 4)
    @given(steps=st.lists(step, min_size=1, max_size=2))
    def fuzz(steps: list[tuple[str, int, int, int]]) -> None:
        tensors, metadata = list(PACKED), {}
        for how, first, second, third in steps:
            at = first % len(tensors)
            name, dtype, shape, data = tensors[at]
            if how == "dtype":
                tensors[at] = (name, OTHERS[second % len(OTHERS)], shape, data)
            elif how == "flatten":
                tensors[at] = (name, dtype, [math.prod(shape)], data)
            elif how == "fold":
                tensors[at] = (name, dtype, [math.prod(shape) // 2, 2] if second % 2 else [1, *shape], data)
            elif how == "drop" and len(tensors) > 1:
                del tensors[at]
            elif how == "rename":
                other = tensors[second % len(tensors)][0].partition(".")[2]
                tensors[at] = (f"{name.partition('.')[0]}.{other}", dtype, shape, data)
            elif how == "header":
                layers = {name.partition(".")[0]: {"format": ["nvfp4", "mxfp8", "", 3][second % 4]}}
                metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
            elif how in ("note", "bytes"):
                notes = [i for i, (each, *_) in enumerate(tensors) if each.endswith(("comfy_quant", "nf4"))]
                at = notes[first % len(notes)] if how == "note" and notes else at
                name, dtype, shape, data = tensors[at]
                place = second % max(len(data), 1)
                tensors[at] = (name, dtype, shape, data[:place] + bytes([third % 256]) + data[place + 1 :])
        judge(packed_bytes(tensors, metadata))

    fuzz()
    judge.saw_both()
