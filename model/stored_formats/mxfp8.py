"""ComfyUI's `mxfp8`: E4M3 values in blocks of 32 columns, with powers of two as scales (E8M0), which are tiled.

https://github.com/Comfy-Org/comfy-kitchen, comfy_kitchen/tensor/mxfp8.py; OCP Microscaling Formats, version 1.0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..safetensors_file import TensorInfo
from .blocked_scales import check_blocks, tiled_shape, untile
from .fp8 import check_input_scales
from .module import PackedWeight, StoredModule

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 32


@dataclass(frozen=True)
class Mxfp8Weight(PackedWeight):
    """`weight` E4M3 [rows, columns], `scale` E8M0 in tiles."""

    scale: TensorInfo
    dtype: str = "MXFP8"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def read(self) -> Tensor:
        """The weight in fp32."""
        import torch

        rows, columns = self.shape
        exponents = untile(self.scale.read().view(torch.uint8), rows, columns // BLOCK)
        factors = exponents.contiguous().view(torch.float8_e8m0fnu).float()
        weight = self.weight.read().float().reshape(rows, columns // BLOCK, BLOCK)
        return weight.mul_(factors[:, :, None]).reshape(rows, columns)


def decode_mxfp8(module: StoredModule) -> Mxfp8Weight:
    format = "mxfp8"
    module.check_weight(format, "F8_E4M3")
    rows, columns = module.weight.shape
    check_blocks(module, format, columns, BLOCK)
    module.check_beside(format, "weight_scale", "input_scale")
    check_input_scales(module, format)
    tiles = tiled_shape(rows, columns // BLOCK)
    return Mxfp8Weight(module.weight, module.take("weight_scale", ("F8_E8M0", "U8"), tiles, format=format))
