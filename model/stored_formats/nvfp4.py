"""ComfyUI's `nvfp4`: E2M1 values, two a byte with the first in the high half, in blocks of 16 columns with an E4M3
scale each, and one fp32 scale for the whole weight.

value × weight_scale × weight_scale_2. The blocks' scales are tiled. An input that is multiplied with `pre_quant_scale`
(Model Optimizer's AWQ) is the same as a weight whose columns are.

https://github.com/Comfy-Org/comfy-kitchen, comfy_kitchen/tensor/nvfp4.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..safetensors_file import TensorInfo
from .blocked_scales import check_blocks, tiled_shape, untile
from .codebook import look_up
from .fp8 import check_input_scales
from .module import FLOATS, PackedWeight, StoredModule

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three bits below the sign stand for."""


@dataclass(frozen=True)
class Nvfp4Weight(PackedWeight):
    """`weight` uint8 [rows, columns / 2], `scale` in tiles, `scale_2` of one number, `input_factors` [columns]."""

    scale: TensorInfo
    scale_2: TensorInfo
    input_factors: TensorInfo | None
    dtype: str = "NVFP4"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[0], 2 * self.weight.shape[1]

    def read(self) -> Tensor:
        """The weight in fp32."""
        import torch

        rows, columns = self.shape
        signed = torch.tensor([*VALUES, *(-value for value in VALUES)])
        scales = self.scale.read().view(torch.float8_e4m3fn).float()
        factors = untile(scales, rows, columns // BLOCK) * self.scale_2.read().float().reshape(())
        weight = look_up(self.weight.read(), signed).reshape(rows, columns // BLOCK, BLOCK)
        weight = weight.mul_(factors[:, :, None]).reshape(rows, columns)
        return weight if self.input_factors is None else weight.mul_(self.input_factors.read().float())


def decode_nvfp4(module: StoredModule) -> Nvfp4Weight:
    format = "nvfp4"
    module.check_weight(format, "U8")
    rows, columns = module.weight.shape[0], 2 * module.weight.shape[1]
    check_blocks(module, format, columns, BLOCK)
    module.check_beside(format, "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
    check_input_scales(module, format)
    tiles = tiled_shape(rows, columns // BLOCK)
    scale = module.take("weight_scale", ("F8_E4M3", "U8"), tiles, format=format)
    scale_2 = module.take("weight_scale_2", ("F32",), (), (1,), format=format)
    factors = None
    if "pre_quant_scale" in module.beside:
        factors = module.take("pre_quant_scale", FLOATS, (columns,), format=format)
    return Nvfp4Weight(module.weight, scale, scale_2, factors)
