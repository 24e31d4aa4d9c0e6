"""Our GGUF reader against files and numbers of the gguf library, and against damaged files."""

from __future__ import annotations

import re
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from kontext.errors import KontextError  # noqa: E402
from kontext.installation import install_command  # noqa: E402
from kontext.model import gguf_file  # noqa: E402
from kontext.model.config import T5Config  # noqa: E402
from kontext.model.gguf_file import KINDS, QUANTIZED, open_gguf, t5_names  # noqa: E402
from kontext.model.text_encoders import T5Encoder  # noqa: E402

Kind = gguf.GGMLQuantizationType

SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block's half-precision scales are, for the formats that the library cannot write."""


def blocks(kind, rows: int, length: int) -> np.ndarray:
    """Bytes of a `rows` × `length` matrix in a quantized format: normal numbers, or random bytes."""
    random = np.random.default_rng(int(kind))
    try:
        return gguf.quants.quantize(random.normal(size=(rows, length)).astype(np.float32), kind)
    except NotImplementedError:
        pass
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (rows * length // block, block_bytes), dtype=np.uint8)
    for offset in SCALES.get(kind.name, ()):
        scales = random.uniform(0.01, 1.0, (len(data), 1)).astype(np.float16)
        data[:, offset : offset + 2] = scales.view(np.uint8)
    return data.reshape(rows, -1)


def write(path: Path, tensors: dict[str, np.ndarray], kind=None, arch: str = "flux", **options) -> Path:
    writer = gguf.GGUFWriter(path, arch, **options.pop("writer", {}))
    for key, shape in options.items():
        writer.add_array(f"comfy.gguf.orig_shape.{key}", shape)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_formats_are_what_the_library_makes_of_them(tmp_path: Path, name: str) -> None:
    data = blocks(Kind[name], 6, 512)
    path = write(tmp_path / "a.gguf", {"img_in.weight": data, "other": data[:1]}, Kind[name])
    info = open_gguf(path).tensors["img_in.weight"]
    assert (info.dtype, info.shape) == (name, (6, 512))
    tensor = info.read()
    assert tensor.dtype == torch.float32
    with np.errstate(all="ignore"):  # random bytes may make NaN of the formats that SCALES does not list
        expected = gguf.quants.dequantize(data, Kind[name])
    np.testing.assert_array_equal(tensor.numpy(), expected)
    if name in SCALES or name.endswith(("_0", "_1")):
        assert torch.isfinite(tensor).all()
        assert tensor.std() > 0


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
        np.linspace(-60000, 60000, 15).astype(np.float16).reshape(3, 5),
        np.arange(5, dtype=np.float64) / 3,
        np.arange(-3, 3, dtype=np.int32).reshape(6, 1),
        np.float32(2.5).reshape(()),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}d",
)
def test_plain_formats_stay_as_they_are(tmp_path: Path, array: np.ndarray) -> None:
    tensor = open_gguf(write(tmp_path / "a.gguf", {"a": array})).tensors["a"].read()
    assert tensor.dtype == torch.from_numpy(array.reshape(-1)).dtype
    np.testing.assert_array_equal(tensor.numpy(), array)
    tensor.fill_(1)  # memory of its own


def test_bfloat16(tmp_path: Path) -> None:
    data = blocks(Kind.BF16, 3, 10)
    tensor = open_gguf(write(tmp_path / "a.gguf", {"a": data}, Kind.BF16)).tensors["a"].read()
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(tensor.float().numpy(), gguf.quants.dequantize(data, Kind.BF16))


def test_the_header_says_what_is_in_the_file(tmp_path: Path) -> None:
    arrays = {"b": np.zeros((3, 5), np.float16), "a": np.ones(7, np.float32)}
    header = open_gguf(write(tmp_path / "a.gguf", arrays, arch="t5encoder"))
    assert header.architecture == "t5encoder"
    assert {name: info.shape for name, info in header.tensors.items()} == {"b": (3, 5), "a": (7,)}
    assert (tmp_path / "a.gguf").stat().st_size - header.tensors["a"].stop == 4  # padding
    arrays["b"] += 1
    assert open_gguf(write(tmp_path / "b.gguf", arrays, arch="t5encoder")).digest == header.digest
    assert open_gguf(write(tmp_path / "c.gguf", arrays, arch="t5")).digest != header.digest


def test_the_original_shape_of_comfyui(tmp_path: Path) -> None:
    data = blocks(Kind.Q4_K, 6, 256)
    path = write(tmp_path / "a.gguf", {"conv": data}, Kind.Q4_K, conv=[4, 6, 8, 8])
    tensor = open_gguf(path).tensors["conv"].read()
    expected = gguf.quants.dequantize(data, Kind.Q4_K).reshape(4, 6, 8, 8)
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("shape", [[4, 6, 8, 7], [-4, -6, 64], [0], [1536.0], [2] * 9, ["1536"]])
def test_an_original_shape_that_does_not_fit(tmp_path: Path, shape: list[object]) -> None:
    path = write(tmp_path / "a.gguf", {"conv": blocks(Kind.Q4_K, 6, 256)}, Kind.Q4_K, conv=shape)
    with pytest.raises(KontextError, match="expected a shape of 1536 weights"):
        open_gguf(path)


def test_dequantized_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = blocks(Kind.Q5_K, 5, 768)
    info = open_gguf(write(tmp_path / "a.gguf", {"a": data}, Kind.Q5_K)).tensors["a"]
    monkeypatch.setattr(gguf_file, "PIECE", 1024)  # 3840 weights: three pieces and three quarters
    np.testing.assert_array_equal(info.read().numpy(), gguf.quants.dequantize(data, Kind.Q5_K))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_reading_takes_little_more_than_the_result(tmp_path: Path, name: str) -> None:
    block, block_bytes = gguf.GGML_QUANT_SIZES[Kind[name]]
    data = np.zeros((1024, 2048 // block * block_bytes), np.uint8)
    info = open_gguf(write(tmp_path / "a.gguf", {"a": data}, Kind[name])).tensors["a"]
    tracemalloc.start()
    assert not info.read().any()  # 8 MB of PyTorch's, which tracemalloc does not see
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def test_names_of_t5_are_the_librarys_and_our_networks() -> None:
    names = t5_names(24)
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 24)
    for theirs, ours in names.items():
        assert known.get_name(ours, try_suffixes=(".weight",)) == theirs
    with torch.device("meta"):
        network = T5Encoder(T5Config(32, 16, 4, 16, num_layers=3, num_heads=4, max_length=8))
    assert set(t5_names(3).values()) == set(network.state_dict())


# -- files that lie --


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes | str = "a", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_of(
    path: Path,
    metadata: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (tensor(),),
    size: int = 32,
    prefix: bytes | None = None,
    alignment: int = 32,
) -> Path:
    """A file of these parts; `prefix` replaces its first 24 bytes."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) if prefix is None else prefix
    raw += b"".join((*metadata, *tensors))
    path.write_bytes(raw + bytes(-len(raw) % alignment) + bytes(size))
    return path


def test_the_smallest_file_and_every_type_of_metadata(tmp_path: Path) -> None:
    assert open_gguf(file_of(tmp_path / "a.gguf")).architecture == ""
    numbers = gguf_file.NUMBERS
    metadata = (
        *(pair(f"n{kind}", kind, struct.pack(f"<{code}", 1)) for kind, code in numbers.items()),
        *(pair(f"a{k}", 9, struct.pack(f"<IQ99{c}", k, 99, *[1] * 99)) for k, c in numbers.items()),
        pair("strings", 9, struct.pack("<IQ", 8, 2) + text("a") + text(b"\xff")),
        pair("empty", 9, struct.pack("<IQ", 8, 0)),
        pair("not UTF-8", 8, text(b"\xff")),
        pair("general.alignment", 4, struct.pack("<I", 64)),
        pair("general.architecture", 8, text("flux")),
        pair("split.count", 2, struct.pack("<H", 1)),
    )
    tensors = (tensor(), tensor("b", (2, 4), 1, 64))
    header = open_gguf(file_of(tmp_path / "b.gguf", metadata, tensors, 64 + 16, alignment=64))
    assert header.architecture == "flux"
    assert header.tensors["b"].start % 64 == 0
    assert header.tensors["b"].read().shape == (4, 2)


def test_metadata_of_every_type_are_what_the_library_wrote(tmp_path: Path) -> None:
    """At the ends of each type's range, so that no type is taken for another; arrays up to 8 numbers are kept."""
    numbers = {
        "UINT8": [0, 255], "INT8": [-128, 127], "UINT16": [0, 65535], "INT16": [-32768, 32767],
        "UINT32": [0, 2**32 - 1], "INT32": [-(2**31), 2**31 - 1], "FLOAT32": [-1.5, 2.0**100],
        "BOOL": [False, True], "UINT64": [0, 2**64 - 1], "INT64": [-(2**63), 2**63 - 1], "FLOAT64": [1 / 3, 1e300],
    }  # fmt: skip
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    for name, values in numbers.items():
        kind = gguf.GGUFValueType[name]
        for index, value in enumerate(values):
            writer.add_key_value(f"{name}.{index}", value, kind)
        writer.add_key_value(f"{name}.list", values * 4, gguf.GGUFValueType.ARRAY, sub_type=kind)
        writer.add_key_value(f"{name}.long", values * 5, gguf.GGUFValueType.ARRAY, sub_type=kind)
    writer.add_string("text", "ä")
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("rb") as file:
        header = gguf_file.HeaderParser(path, file, path.stat().st_size)
        found = header.metadata(header.counts()[1])
    assert found.pop("general.architecture") == "flux"
    assert found.pop("text") == "ä"
    expected: dict[str, object] = {}
    for name, values in numbers.items():
        expected |= {f"{name}.{index}": value for index, value in enumerate(values)}
        expected |= {f"{name}.list": tuple(values * 4), f"{name}.long": None}
    assert found == expected
    assert open_gguf(path).tensors["a"].shape == (4,)


def test_a_header_that_ends_on_the_alignment_has_no_padding(tmp_path: Path) -> None:
    """Every length of a name, so that every remainder occurs; the library writes and reads the same place."""
    for length in range(1, 33):
        path = write(tmp_path / "a.gguf", {"a" * length: np.arange(8, dtype=np.float32)})
        (info,) = open_gguf(path).tensors.values()
        (theirs,) = gguf.GGUFReader(path).tensors
        assert info.start == theirs.data_offset
        assert torch.equal(info.read(), torch.arange(8.0))


def test_the_longest_name_that_the_format_allows(tmp_path: Path) -> None:
    assert open_gguf(file_of(tmp_path / "a.gguf", (pair("k" * 65535, 0, b"\1"),))).tensors
    with pytest.raises(KontextError, match="a name of 65536 bytes"):
        open_gguf(file_of(tmp_path / "a.gguf", (pair("k" * 65536, 0, b"\1"),)))


def test_version_2_is_read_too(tmp_path: Path) -> None:
    """llama.cpp wrote it in 2023; little-endian files are the same but for the number."""
    assert open_gguf(file_of(tmp_path / "a.gguf", prefix=prefix(2, metadata=0))).tensors["a"].shape == (8,)


def prefix(version: int = 3, tensors: int = 1, metadata: int = 1, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, metadata)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prefix": b"GGML" + prefix()[4:]}, "not a GGUF file"),
        ({"prefix": prefix(1)}, "version 1, expected 2 or 3"),
        ({"prefix": prefix(4)}, "version 4, expected 2 or 3"),
        ({"prefix": prefix(0)}, "version 0, expected 2 or 3"),
        ({"prefix": prefix(order=">")}, "big-endian.*gguf-convert-endian"),
        ({"prefix": prefix(tensors=0, metadata=0)}, "holds no tensors"),
        ({"prefix": prefix(tensors=1 << 60, metadata=0)}, f"{1 << 60} tensors, expected at most"),
        ({"prefix": prefix(metadata=(1 << 64) - 1)}, "metadata, expected at most"),
        ({"prefix": prefix(tensors=90_000, metadata=0)}, "damaged"),
        ({"prefix": prefix(metadata=2), "tensors": (), "size": 0}, "truncated or damaged"),
        # metadata
        ({"metadata": (struct.pack("<Q", 1 << 60),)}, f"a name of {1 << 60} bytes"),
        ({"metadata": (struct.pack("<Q", 60_000),)}, "truncated or damaged"),
        ({"metadata": (pair(b"\xff", 0, b"\0"),)}, "not UTF-8"),
        ({"metadata": (pair("a", 0, b"\0"), pair("a", 0, b"\0"))}, "'a': it appears twice"),
        ({"metadata": (pair("a", 13, b"\0"),)}, "unknown type 13"),
        ({"metadata": (pair("a", 8, struct.pack("<Q", 1 << 60)),)}, "truncated or damaged"),
        ({"metadata": (pair("a", 9, struct.pack("<IQ", 0, 1 << 40)),)}, "truncated or damaged"),
        ({"metadata": (pair("a", 9, struct.pack("<IQ", 12, (1 << 64) - 1)),)}, "truncated or damaged"),
        ({"metadata": (pair("a", 9, struct.pack("<IQ", 8, 1 << 40)),)}, "truncated or damaged"),
        ({"metadata": (pair("a", 9, struct.pack("<IQ", 9, 1 << 40)),)}, "an array of type 9"),
        ({"metadata": (pair("general.architecture", 0, b"\1"),)}, "architecture is not a string"),
        (
            {"metadata": (pair("general.alignment", 4, struct.pack("<I", 0)),)},
            "is 0, expected a power of two",
        ),
        ({"metadata": (pair("general.alignment", 4, struct.pack("<I", 48)),)}, "is 48, expected a power"),
        (
            {"metadata": (pair("general.alignment", 4, struct.pack("<I", 1 << 31)),)},
            "expected a power of two",
        ),
        ({"metadata": (pair("general.alignment", 6, struct.pack("<f", 32)),)}, "expected a power of two"),
        ({"metadata": (pair("split.count", 2, struct.pack("<H", 3)),)}, "3 files.*--merge"),
        ({"metadata": (pair("split.count", 8, text("3")),)}, "split.count is not a number"),
        # tensors
        ({"tensors": (tensor(), tensor("a", offset=32)), "size": 64}, "'a' appears twice"),
        ({"tensors": (tensor(b"\xff"),)}, "not UTF-8"),
        ({"tensors": (tensor("a" * 70_000),)}, "a name of 70000 bytes"),
        ({"tensors": (tensor(dims=(1,) * 9),)}, "'a': 9 dimensions"),
        ({"tensors": (text("a") + struct.pack("<I", 1 << 31),)}, f"{1 << 31} dimensions"),
        ({"tensors": (tensor(dims=(0, 8)),)}, r"\[8, 0\] in F32"),
        ({"tensors": (tensor(dims=(1 << 63, 1 << 63)),)}, "truncated: .* download it again"),
        (
            {"tensors": (tensor(kind=1000),)},
            "number format number 1000, which is not supported: expected F32",
        ),
        (
            {"tensors": (tensor(dims=(256,), kind=15),), "size": 320},
            "number format Q8_K, which is not supported",
        ),
        ({"tensors": (tensor(dims=(40, 32), kind=2),)}, "rows of whole blocks of 32"),
        ({"tensors": (tensor(offset=32),), "size": 64}, "'a' is out of place"),
        ({"tensors": (tensor(offset=(1 << 64) - 32),)}, "'a' is out of place"),
        ({"tensors": (tensor(), tensor("b")), "size": 32}, "'b' is out of place"),
        ({"tensors": (tensor(), tensor("b", offset=16)), "size": 48}, "'b' is out of place"),
        ({"tensors": (tensor(), tensor("b", offset=64)), "size": 96}, "'b' is out of place"),
        ({"tensors": (tensor(dims=(7,)), tensor("b", offset=28)), "size": 60}, "'b' is out of place"),
        ({"size": 31}, "truncated: .* download it again"),
        ({"size": 0}, "truncated"),
        ({"size": 33}, "1 bytes more than its header says"),
    ],
)
def test_a_file_that_lies_is_one_clear_error(tmp_path: Path, parts: dict[str, object], message: str) -> None:
    path = file_of(tmp_path / "a.gguf", **parts)
    with pytest.raises(KontextError, match=message) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    data = write(tmp_path / "a.gguf", {"a": np.ones((3, 5), np.float32)}, arch="t5").read_bytes()
    path = tmp_path / "b.gguf"
    for size in range(len(data) - 4):  # the last 4 are padding
        path.write_bytes(data[:size])
        with pytest.raises(KontextError, match="truncated" if size > 3 else "not a GGUF file"):
            open_gguf(path)


def test_a_split_file_of_the_library(tmp_path: Path) -> None:
    arrays = {name: np.zeros(4, np.float32) for name in "abc"}
    write(tmp_path / "a.gguf", arrays, writer={"split_max_tensors": 1})
    with pytest.raises(KontextError, match="3 files of a split GGUF: merge them"):
        open_gguf(tmp_path / "a-00001-of-00003.gguf")


def test_a_big_endian_file_of_the_library(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.gguf", {"a": np.zeros(4, np.float32)}, writer={"endianess": gguf.GGUFEndian.BIG}
    )
    with pytest.raises(KontextError, match="big-endian"):
        open_gguf(path)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="missing"):
        open_gguf(tmp_path / "a.gguf")
    with pytest.raises(KontextError, match="cannot read"):
        open_gguf(tmp_path)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q4_0])
def test_a_file_that_shrinks_after_the_header(tmp_path: Path, kind) -> None:
    path = write(tmp_path / "a.gguf", {"a": blocks(kind, 2, 64).view(np.uint8)}, kind)
    info = open_gguf(path).tensors["a"]
    path.write_bytes(path.read_bytes()[: info.stop - 1])
    with pytest.raises(KontextError, match="truncated at tensor a"):
        info.read()
    path.unlink()
    with pytest.raises(KontextError, match="cannot read"):
        info.read()


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(KontextError, match=re.escape(install_command("export"))):
        open_gguf(tmp_path / "a.gguf")


def test_block_sizes_are_the_librarys() -> None:
    assert set(KINDS) <= {kind.name for kind in Kind}
    for kind in Kind:
        if kind.name in KINDS:  # a newer library has more
            assert KINDS[kind.name] == (kind.value, *gguf.GGML_QUANT_SIZES[kind])
    assert set(QUANTIZED) <= set(KINDS)
