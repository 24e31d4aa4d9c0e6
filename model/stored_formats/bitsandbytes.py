"""bitsandbytes' NF4 and FP4: codes of four bits, two a byte with the first in the high half, in blocks of `blocksize`
weights, each block with its largest absolute value (`absmax`).

value = quant_map[code] × absmax[block]. With double quantization absmax is itself in 8 bits:
nested_quant_map[absmax] × nested_absmax[block of nested_blocksize] + nested_offset (Dettmers et al. 2023,
arXiv:2305.14314). What is no tensor is JSON as bytes, in `quant_state.bitsandbytes__nf4` or `…__fp4`.

https://github.com/bitsandbytes-foundation/bitsandbytes, bitsandbytes/functional.py (QuantState)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import KontextError
from ..safetensors_file import TensorInfo
from .codebook import look_up
from .module import PackedWeight, StoredModule
from .notes import read_note

if TYPE_CHECKING:
    from torch import Tensor

STATES = {"weight.quant_state.bitsandbytes__nf4": "nf4", "weight.quant_state.bitsandbytes__fp4": "fp4"}

KEYS = ("quant_type", "blocksize", "dtype", "shape")
NESTED_KEYS = ("nested_blocksize", "nested_dtype", "nested_offset")


@dataclass(frozen=True)
class NestedAbsmax:
    """How absmax is quantized: `absmax` fp32 [blocks / blocksize], `codes` fp32 [256]."""

    absmax: TensorInfo
    codes: TensorInfo
    blocksize: int
    offset: float


@dataclass(frozen=True)
class FourBitWeight(PackedWeight):
    """`weight` uint8 with two weights a byte, `absmax` fp32 [blocks], or uint8 if it is `nested`, `codes` fp32 [16]."""

    absmax: TensorInfo
    codes: TensorInfo
    nested: NestedAbsmax | None
    blocksize: int
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """The weight in fp32."""
        absmax = self.absmax.read()
        if self.nested is not None:
            values = self.nested.codes.read()[absmax.int()]
            largest = self.nested.absmax.read().repeat_interleave(self.nested.blocksize)[: len(values)]
            absmax = values * largest + self.nested.offset
        count = math.prod(self.shape)
        weight = look_up(self.weight.read(), self.codes.read())
        whole = count // self.blocksize * self.blocksize
        weight[:whole].view(-1, self.blocksize).mul_(absmax[: whole // self.blocksize, None])
        weight[whole:].mul_(absmax[-1])
        return weight[:count].reshape(self.shape)


def decode_four_bits(module: StoredModule) -> FourBitWeight:
    states = [name for name in STATES if name in module.beside]
    if len(states) != 1:
        first = next(name for name in module.beside if name.startswith("weight."))
        raise module.refuse(first, f"is there with {len(states)} of bitsandbytes' quant_state, expected one")
    kind = STATES[states[0]]
    format = f"bitsandbytes' {kind.upper()}"
    state = read_state(module, states[0], kind)
    shape, blocksize = tuple(state["shape"]), state["blocksize"]
    count = math.prod(shape)
    blocks, size = -(-count // blocksize), -(-count // 2)
    if module.weight.dtype != "U8" or math.prod(module.weight.shape) != size:
        given = f"{module.weight.dtype} {list(module.weight.shape)}"
        raise module.refuse(
            "weight", f"is {given}, expected U8 of {size} bytes for {list(shape)} in {format}"
        )
    nested = "nested_offset" in state
    names = ["absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if nested else ())]
    module.check_beside(format, states[0], *(f"weight.{name}" for name in names))
    absmax = module.take("weight.absmax", ("U8",) if nested else ("F32",), (blocks,), format=format)
    codes = module.take("weight.quant_map", ("F32",), (16,), format=format)
    inner = None
    if nested:
        groups = -(-blocks // state["nested_blocksize"])
        inner = NestedAbsmax(
            module.take("weight.nested_absmax", ("F32",), (groups,), format=format),
            module.take("weight.nested_quant_map", ("F32",), (256,), format=format),
            state["nested_blocksize"],
            float(state["nested_offset"]),
        )
    return FourBitWeight(
        module.weight, absmax, codes, inner, blocksize, shape, f"bitsandbytes {kind.upper()}"
    )


def read_state(module: StoredModule, name: str, kind: str) -> dict[str, Any]:
    """bitsandbytes' note, checked.

    Raises:
        KontextError: a key is missing, unknown or of another kind.
    """
    info = module.beside[name]
    state = read_note(info)
    nested = NESTED_KEYS if any(key.startswith("nested_") for key in state) else ()
    if set(state) != {*KEYS, *nested}:
        odd = ", ".join(sorted(set(state) ^ {*KEYS, *nested}))
        raise KontextError(f"{info.path}: {info.name} has keys that it should not, or lacks them: {odd}")
    shape = state["shape"]
    good = (
        state["quant_type"] == kind
        and isinstance(shape, list)
        and 0 < len(shape) <= 4
        and all(type(length) is int and 0 < length < 1 << 31 for length in shape)
        and all(is_block_size(state[key]) for key in ("blocksize", "nested_blocksize") if key in state)
        and (not nested or is_finite_number(state["nested_offset"]))
    )
    if not good:
        raise KontextError(f"{info.path}: {info.name} is damaged: {str(state)[:200]}")
    return state


def is_block_size(value: object) -> bool:
    return type(value) is int and 16 <= value <= 1 << 16 and not value & (value - 1)


def is_finite_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
