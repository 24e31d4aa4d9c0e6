"""The types of GGUF files of FLUX, and the number format that each of them gives a weight.

The rules are those of ComfyUI-GGUF's tools/convert.py and tools/lcpp.patch, with which published files are made, and of
stable-diffusion.cpp's converter: the blocks' matrices are quantized; the first and last layers are not, and what has
one dimension is fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...quant.ggml import LIBRARY, PACKAGE, form_for

KEPT = ("img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
"""Names begin with it: not quantized."""

SMALL = 1024
"""Matrices of at most so many weights are fp32."""

PLAIN = ("F32", "F16", "BF16")
"""Formats that are not quantized."""

FUSED = "attn.qkv.weight"
"""Names of the matrices that a mixed type gives more bits end with it."""


@dataclass(frozen=True)
class GgufType:
    """`form` is the format of the blocks' matrices, `fused` that of the double blocks' query, key and value, `number`
    what general.file_type says (llama.cpp's `llama_ftype`)."""

    name: str
    form: str
    fused: str
    number: int

    @property
    def needs_library(self) -> bool:
        return self.form in LIBRARY

    def describe(self) -> str:
        if self.fused != self.form:
            return f"{self.form}, and {self.fused} for query, key and value of the double blocks"
        return self.form


def table() -> Mapping[str, GgufType]:
    # fmt: off
    rows = (
        ("F32", "F32", 0), ("F16", "F16", 1), ("BF16", "BF16", 32),
        ("Q8_0", "Q8_0", 7), ("Q5_1", "Q5_1", 9), ("Q5_0", "Q5_0", 8), ("Q4_1", "Q4_1", 3), ("Q4_0", "Q4_0", 2),
        ("Q6_K", "Q6_K", 18), ("Q5_K", "Q5_K", 16), ("Q5_K_S", "Q5_K", 16), ("Q4_K", "Q4_K", 14),
        ("Q4_K_S", "Q4_K", 14), ("Q3_K", "Q3_K", 11), ("Q3_K_S", "Q3_K", 11), ("Q2_K", "Q2_K", 10),
        ("IQ4_NL", "IQ4_NL", 25), ("IQ4_XS", "IQ4_XS", 30),
    )
    # fmt: on
    mixed = (
        ("Q5_K_M", "Q5_K", "Q6_K", 17),
        ("Q4_K_M", "Q4_K", "Q5_K", 15),
        ("Q3_K_M", "Q3_K", "Q4_K", 12),
    )
    types = [GgufType(name, form, form, number) for name, form, number in rows]
    types += [GgufType(*row) for row in mixed]
    order = [*PACKAGE, *LIBRARY]
    types.sort(key=lambda each: (order.index(each.form), each.form != each.name, each.name))
    return MappingProxyType({each.name: each for each in types})


TYPES = table()
"""By name. Q4_K_S is another name of Q4_K: stable-diffusion.cpp and llama.cpp's formats have the shorter one, files for
ComfyUI the longer one."""


def asked_form(kind: GgufType, name: str, shape: tuple[int, ...], plain: str) -> str:
    """The format that the type's rule gives a weight, whether its rows are whole blocks of it or not.

    Args:
        kind: the type.
        name: Black Forest Labs'.
        shape: PyTorch's, [out, in] for a matrix.
        plain: the format of matrices that are not quantized, of `PLAIN`.
    """
    if len(shape) < 2 or math.prod(shape) <= SMALL:
        return "F32"
    if kind.form in PLAIN:
        return kind.form
    if name.startswith(KEPT):
        return plain
    return kind.fused if name.endswith(FUSED) else kind.form


def form_of(kind: GgufType, name: str, shape: tuple[int, ...], plain: str) -> str:
    """As `asked_form`, or the format that llama.cpp takes instead where rows are no whole blocks of that."""
    return form_for(asked_form(kind, name, shape, plain), shape[-1])
