"""FP8 weights with a scale for all of them or for each row: value × scale.

ComfyUI's `fp8_scaled` files name the scale `scale_weight`, newer ones `weight_scale`; a scale of activations may be
beside it, which is not used, since activations are calibrated here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..safetensors_file import TensorInfo
from .module import FLOATS, PackedWeight, StoredModule, scale_shapes
from .notes import check_keys

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
"""ComfyUI's name of a format → the weights' number format."""

SCALES = ("scale_weight", "weight_scale")
INPUT_SCALES = ("scale_input", "input_scale")


@dataclass(frozen=True)
class ScaledWeight(PackedWeight):
    """A weight [rows, …] and the scale to multiply it with: one number, or one for each row."""

    scale: TensorInfo

    @property
    def dtype(self) -> str:
        return f"{self.weight.dtype} scaled"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def read(self) -> Tensor:
        """The weight in fp32."""
        scale = self.scale.read().float()
        return self.weight.read().float().mul_(scale.reshape(-1, *[1] * (len(self.shape) - 1)))


def decode_fp8(module: StoredModule) -> ScaledWeight:
    """ComfyUI's `float8_e4m3fn` and `float8_e5m2`, with or without a note."""
    named = str(module.note.get("format", ""))
    dtypes = (DTYPES[named],) if named else tuple(DTYPES.values())
    format = named or "FP8"
    module.check_weight(format, *dtypes)
    check_keys(module.note_name, module.note, {"orig_shape": (list(module.weight.shape),)})
    scales = [name for name in SCALES if name in module.beside]
    if len(scales) == 2:
        raise module.refuse(scales[1], f"is a second scale, beside {scales[0]}: the file is damaged")
    module.check_beside(format, *SCALES, *INPUT_SCALES)
    check_input_scales(module, format)
    name = scales[0] if scales else SCALES[1]
    scale = module.take(name, FLOATS, *scale_shapes(module.weight.shape[0]), format=format)
    return ScaledWeight(module.weight, scale)


def check_input_scales(module: StoredModule, format: str) -> None:
    """Raises KontextError unless scales of activations, if there are any, are one number."""
    for name in INPUT_SCALES:
        if name in module.beside:
            module.take(name, FLOATS, (), (1,), (1, 1), format=format)
