"""Reads the tensors of a GGUF file, one at a time, after its header has been checked in full; dequantizes them.

The header is not parsed by `gguf.GGUFReader` (0.19), which trusts the file: it loops over any count, makes an array
object for every element of every list, lets tensors overlap, reports damage as IndexError or ValueError, and maps the
whole file, whose pages then count as this process's memory. Here nothing is read, allocated or looped over before its
size has been checked. Dequantization is the library's, which is imported, as PyTorch is, when a tensor is read.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import KontextError
from ..installation import install_command
from ..regular_files import open_regular
from ..safetensors_header import check_layout, padded
from .safetensors_file import TensorInfo
from .stored_dtypes import TORCH_NAMES

if TYPE_CHECKING:
    from torch import Tensor

# fmt: off
QUANTIZED = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4",
)
# fmt: on
"""Formats that `gguf.quants.dequantize` converts to float32. Not NVFP4, whose weights also need a scale in another
tensor."""

# fmt: off
KINDS = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q8_1": (9, 32, 40), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "Q8_K": (15, 256, 292),
    "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18), "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82), "IQ4_XS": (23, 256, 136),
    "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8), "F64": (28, 1, 8),
    "IQ1_M": (29, 256, 56), "BF16": (30, 1, 2), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36), "Q1_0": (41, 128, 18),
}
# fmt: on
"""Number format → its number in files, weights and bytes of a block: `gguf.GGML_QUANT_SIZES`, which takes 0.2 s to
import."""

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Numeric types of metadata → struct's codes."""

STRING, ARRAY = 8, 9
"""The other types of metadata."""

VERSIONS = (2, 3)
"""They differ only for big-endian files, which are refused. Version 1 had 32-bit counts."""

MAX_HEADER_BYTES = 64 << 20
"""T5's vocabulary takes 1 MB, the largest ones of language models 16 MB."""

MAX_COUNT = 100_000
"""Of tensors, and of metadata. FLUX.1 has 780 tensors."""

MAX_NAME_BYTES = 65_535
"""The format's own limit."""

MAX_DIMENSIONS = 8
"""ggml supports 4 dimensions, ComfyUI-GGUF writes 5."""

MAX_ALIGNMENT = 65_536
"""In bytes; files use 32."""

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""ComfyUI-GGUF stores tensors whose rows are not whole blocks as rows of 256, and their shape under this key."""

PIECE = 1 << 18
"""Weights that are dequantized at once: a multiple of every format's block size. The library's temporaries take 5 MB
and stay in the CPU's cache: Q4_K at 515 M weights/s on one core; 223 M/s in pieces of 2^16, 485 M/s of 2^20."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is: `shape` has the outermost dimension first; `start` and `stop` count bytes from the file's
    start."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Tensor:
        """The tensor, in newly allocated memory: plain formats unchanged, quantized ones as float32.

        Raises:
            KontextError: the file can no longer be read, or has become shorter.
        """
        if self.dtype in TORCH_NAMES:
            return TensorInfo(self.path, self.name, self.dtype, self.shape, self.start, self.stop).read()
        import gguf
        import numpy as np
        import torch

        number, block, block_bytes = KINDS[self.dtype]
        kind = gguf.GGMLQuantizationType(number)
        result = torch.empty(math.prod(self.shape), dtype=torch.float32)
        weights = result.numpy()
        # As one row of many blocks, since blocks are stored one after the other whatever the shape: the library loops
        # over groups of 16 rows, which is slow for short rows.
        piece = np.empty((1, PIECE // block * block_bytes), dtype=np.uint8)
        try:
            # A damaged scale may be NaN or infinite; the caller checks for that.
            with open_regular(self.path) as file, np.errstate(all="ignore"):
                file.seek(self.start)
                for first in range(0, len(weights), PIECE):
                    count = min(PIECE, len(weights) - first)
                    data = piece[:, : count // block * block_bytes]
                    if file.readinto(data[0].data) != data.size:
                        raise KontextError(
                            f"{self.path} is truncated at tensor {self.name}: download it again"
                        )
                    weights[first : first + count] = gguf.quants.dequantize(data, kind)[0]
        except OSError as error:
            raise KontextError(f"cannot read {self.path}: {error.strerror}") from None
        return result.reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """`tensors` by name; `digest` is the header's SHA-256; `architecture` is "flux", "t5encoder", …, or "" if the file
    has none, as those of stable-diffusion.cpp."""

    tensors: dict[str, GgufTensor]
    digest: str
    architecture: str


def open_gguf(path: Path) -> GgufFile:
    """Reads the header of `path` and none of its tensors.

    Raises:
        KontextError: the file is missing, truncated or of an unsupported kind, or its header is damaged.
    """
    require_library()
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header = HeaderParser(path, file, size)
            num_tensors, num_metadata = header.counts()
            metadata = header.metadata(num_metadata)
            check_split(path, metadata)
            tensors = [header.tensor() for _ in range(num_tensors)]
    except FileNotFoundError:
        raise KontextError(f"{path} is missing") from None
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    architecture = metadata.get("general.architecture", "")
    if not isinstance(architecture, str):
        raise KontextError(f"{path} has a damaged GGUF header: general.architecture is not a string")
    alignment = metadata.get("general.alignment", 32)
    # A power of two has one bit set.
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise KontextError(
            f"{path} has a damaged GGUF header: general.alignment is {alignment!r}, expected a power of two "
            f"up to {MAX_ALIGNMENT}"
        )
    base = padded(header.position, alignment)
    placed: dict[str, GgufTensor] = {}
    for tensor in tensors:
        if tensor.name in placed:
            raise KontextError(f"{path} has a damaged GGUF header: tensor {tensor.name!r} appears twice")
        shape = original_shape(tensor, metadata.get(ORIGINAL_SHAPE + tensor.name, tensor.shape))
        placed[tensor.name] = GgufTensor(
            path, tensor.name, tensor.dtype, shape, base + tensor.start, base + tensor.stop
        )
    places = ((tensor.start, tensor.stop, tensor.name) for tensor in placed.values())
    check_layout(path, "GGUF", places, base, size, alignment)
    return GgufFile(placed, header.sha256.hexdigest(), architecture)


def t5_names(num_layers: int) -> dict[str, str]:
    """llama.cpp's name → transformers' name, for every weight of a T5 encoder with gated feed-forward layers."""
    names = {
        "token_embd.weight": "shared.weight",
        "enc.output_norm.weight": "encoder.final_layer_norm.weight",
        "enc.blk.0.attn_rel_b.weight": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    }
    block = {
        "attn_norm": "layer.0.layer_norm",
        "attn_q": "layer.0.SelfAttention.q",
        "attn_k": "layer.0.SelfAttention.k",
        "attn_v": "layer.0.SelfAttention.v",
        "attn_o": "layer.0.SelfAttention.o",
        "ffn_norm": "layer.1.layer_norm",
        "ffn_gate": "layer.1.DenseReluDense.wi_0",
        "ffn_up": "layer.1.DenseReluDense.wi_1",
        "ffn_down": "layer.1.DenseReluDense.wo",
    }
    for index in range(num_layers):
        for name, module in block.items():
            names[f"enc.blk.{index}.{name}.weight"] = f"encoder.block.{index}.{module}.weight"
    return names


def require_library() -> None:
    """Raises KontextError without the optional package gguf: better before an export than at its first weight."""
    if find_spec("gguf") is None:
        raise KontextError(f"GGUF files need the package gguf: {install_command('export')}")


class HeaderParser:
    """Parses a header from its beginning, and hashes it. All numbers are little-endian."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.position = 0
        self.place = "its beginning"
        self.sha256 = hashlib.sha256()

    def damaged(self, what: str) -> KontextError:
        return KontextError(f"{self.path} has a damaged GGUF header at {self.place}: {what}")

    def require(self, count: int) -> None:
        """Raises KontextError unless `count` more bytes are left in the file and in the size limit."""
        end = self.position + count
        if end > self.size:
            raise KontextError(
                f"{self.path} is truncated or damaged: {self.place} ends at byte {end} of {self.size}: "
                "download it again"
            )
        if end > MAX_HEADER_BYTES:
            raise self.damaged(f"it ends at byte {end}, expected a header of at most {MAX_HEADER_BYTES}")

    def take(self, count: int) -> bytes:
        self.require(count)
        data = self.file.read(count)
        if len(data) != count:
            raise KontextError(f"{self.path} became shorter while being read: try again")
        self.position += count
        self.sha256.update(data)
        return data

    def numbers(self, codes: str) -> tuple[Any, ...]:
        """Numbers, by struct's codes such as "IQ"."""
        return struct.unpack(f"<{codes}", self.take(struct.calcsize(f"<{codes}")))

    def name(self) -> str:
        (length,) = self.numbers("Q")
        if length > MAX_NAME_BYTES:
            raise self.damaged(f"a name of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a name that is not UTF-8") from None

    def counts(self) -> tuple[int, int]:
        """The first 24 bytes: the numbers of tensors and of metadata."""
        if self.size < 4 or self.take(4) != b"GGUF":
            raise KontextError(f"{self.path} is not a GGUF file")
        (version,) = self.numbers("I")
        if version and not version & 0xFFFF:
            raise KontextError(
                f"{self.path} is a big-endian GGUF: convert it with gguf-convert-endian FILE little"
            )
        if version not in VERSIONS:
            raise KontextError(
                f"{self.path} is GGUF version {version}, expected 2 or 3: download a current conversion"
            )
        num_tensors, num_metadata = self.numbers("QQ")
        for count, what in ((num_tensors, "tensors"), (num_metadata, "metadata")):
            if count > MAX_COUNT:
                raise self.damaged(f"{count} {what}, expected at most {MAX_COUNT}")
        if num_tensors == 0:
            raise KontextError(f"{self.path} holds no tensors: it is a vocabulary, or damaged")
        return num_tensors, num_metadata

    def metadata(self, count: int) -> dict[str, object]:
        """Key → value; None for arrays that are too long to be a shape, which are skipped."""
        result: dict[str, object] = {}
        for index in range(count):
            self.place = f"metadata {index + 1} of {count}"
            key = self.name()
            self.place = f"metadata {key!r}"
            if key in result:
                raise self.damaged("it appears twice")
            (kind,) = self.numbers("I")
            result[key] = self.value(kind)
        return result

    def value(self, kind: int) -> object:
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind])[0]
        if kind == STRING:
            (length,) = self.numbers("Q")
            return self.take(length).decode("utf-8", "replace")
        if kind != ARRAY:
            raise self.damaged(f"unknown type {kind}")
        element, count = self.numbers("IQ")
        if element in NUMBERS:
            data = self.take(count * struct.calcsize(f"<{NUMBERS[element]}"))
            return struct.unpack(f"<{count}{NUMBERS[element]}", data) if count <= MAX_DIMENSIONS else None
        if element != STRING:
            raise self.damaged(f"an array of type {element}")
        self.require(8 * count)  # each string has a length of 8 bytes, so no loop is longer than the file
        for _ in range(count):
            self.take(self.numbers("Q")[0])
        return None

    def tensor(self) -> GgufTensor:
        """The next tensor; its `start` and `stop` count from the end of the header, which is not known yet."""
        self.place = "a tensor"
        name = self.name()
        self.place = f"tensor {name!r}"
        (num_dims,) = self.numbers("I")
        if num_dims > MAX_DIMENSIONS:
            raise self.damaged(f"{num_dims} dimensions")
        shape = self.numbers(f"{num_dims}Q")[::-1]  # the file has the innermost dimension first
        kind, start = self.numbers("IQ")
        dtype = next((known for known, (number, *_) in KINDS.items() if number == kind), f"number {kind}")
        if dtype not in TORCH_NAMES and dtype not in QUANTIZED:
            raise KontextError(
                f"{self.path}: tensor {name!r} has the number format {dtype}, which is not supported: expected "
                f"F32, F16, BF16 or one of {', '.join(QUANTIZED)}"
            )
        _, block, block_bytes = KINDS[dtype]
        row = shape[-1] if shape else 1
        if 0 in shape or row % block:
            raise self.damaged(f"{list(shape)} in {dtype}, expected rows of whole blocks of {block}")
        return GgufTensor(
            self.path, name, dtype, shape, start, start + math.prod(shape) // block * block_bytes
        )


def check_split(path: Path, metadata: dict[str, object]) -> None:
    count = metadata.get("split.count", 1)
    if type(count) is not int:
        raise KontextError(f"{path} has a damaged GGUF header: split.count is not a number")
    if count > 1:
        raise KontextError(
            f"{path} is one of {count} files of a split GGUF: merge them with llama.cpp's "
            "llama-gguf-split --merge FIRST_FILE OUTPUT"
        )


def original_shape(tensor: GgufTensor, shape: object) -> tuple[int, ...]:
    if (
        not isinstance(shape, tuple)
        or not all(type(length) is int and length > 0 for length in shape)
        or math.prod(shape) != math.prod(tensor.shape)
    ):
        raise KontextError(
            f"{tensor.path} has a damaged GGUF header at metadata {ORIGINAL_SHAPE + tensor.name!r}: expected "
            f"a shape of {math.prod(tensor.shape)} weights"
        )
    return shape
