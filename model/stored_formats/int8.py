"""INT8 weights with a scale for all of them or for each row: ComfyUI's `int8_tensorwise`, value × scale, and
bitsandbytes' LLM.int8(), value × SCB / 127 with each row's largest absolute value in SCB.

https://github.com/Comfy-Org/comfy-kitchen, comfy_kitchen/tensor/int8.py;
https://github.com/bitsandbytes-foundation/bitsandbytes, bitsandbytes/functional.py (int8_vectorwise_dequant)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import KontextError
from .fp8 import INPUT_SCALES, ScaledWeight, check_input_scales
from .module import FLOATS, INSTEAD, StoredModule, scale_shapes
from .notes import check_keys

if TYPE_CHECKING:
    from torch import Tensor


def decode_int8(module: StoredModule) -> ScaledWeight:
    """ComfyUI's `int8_tensorwise`."""
    format = "int8_tensorwise"
    where = module.note_name
    parameters = module.note.get("params", {})
    if module.note.get("convrot") or (isinstance(parameters, dict) and parameters.get("convrot")):
        raise KontextError(f"{where} says convrot, INT8 of rotated weights, which is not read: {INSTEAD}")
    module.check_weight(format, "I8")
    expected = {"convrot": (False,), "params": ({},), "per_row": (True, False)}
    check_keys(where, module.note, {**expected, "orig_shape": (list(module.weight.shape),)})
    module.check_beside(format, "weight_scale", *INPUT_SCALES)
    check_input_scales(module, format)
    rows = module.weight.shape[0]
    scale = module.take("weight_scale", FLOATS, *scale_shapes(rows), format=format)
    if "per_row" in module.note and module.note["per_row"] != (scale.shape in ((rows,), (rows, 1))):
        raise KontextError(
            f"{where} has per_row {module.note['per_row']}, but {scale.name} is {list(scale.shape)}"
        )
    return ScaledWeight(module.weight, scale)


@dataclass(frozen=True)
class RowwiseWeight(ScaledWeight):
    """A weight of bitsandbytes; `scale` is SCB."""

    @property
    def dtype(self) -> str:
        return "bitsandbytes INT8"

    def read(self) -> Tensor:
        """The weight in fp32, computed in bitsandbytes' order."""
        return self.weight.read().float().mul_(self.scale.read()[:, None]).mul_(1 / 127)


def decode_llm_int8(module: StoredModule) -> RowwiseWeight:
    """bitsandbytes' INT8: `SCB`, and `weight_format` 0, for weights in rows."""
    format = "bitsandbytes' INT8"
    module.check_weight(format, "I8")
    module.check_beside(format, "SCB", "weight_format")
    scale = module.take("SCB", ("F32",), (module.weight.shape[0],), format=format)
    if "weight_format" in module.beside:
        (order,) = module.take("weight_format", ("U8",), (), (1,), format=format).read_bytes()
        if order != 0:
            raise module.refuse(
                "weight_format", f"is {order}, expected 0: tiled weights are not read: {INSTEAD}"
            )
    return RowwiseWeight(module.weight, scale)
