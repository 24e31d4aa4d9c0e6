"""The scale over all blocks of a linear's inputs that are rounded to E2M1 in blocks (`InputRounding.BLOCKS`).

x, a token's channels in blocks of 16, is rounded with two levels of scales: g, which this module finds, and for each
block s = E4M3(largest |x| of the block / (6 g)), found at run time. What stands for x is E2M1(x / (s g)) s g.
"""

from __future__ import annotations

from torch import Tensor

from .formats.fp8 import E4M3_MAX
from .formats.nvfp4 import VALUES
from .statistics import InputStatistics

HEADROOM = 2.0
"""Largest input whose block has a scale within E4M3, over that of calibration. A factor of two costs one of E4M3's 18
octaves at the other end, where blocks are too small to matter, and changes nothing else; beyond it a block is
clipped."""

SMALLEST = 2.0**-80
"""Of the scale, so that every block's step is a normal fp32; for inputs that are all but zeros."""


def input_reach(statistics: InputStatistics, centre: Tensor | None, factors: Tensor | None) -> Tensor:
    """The largest of calibration's inputs less `centre` [in], times `factors` [in]: fp32 [in]."""
    reach = statistics.largest.amax(0) if centre is None else statistics.reach(centre)
    return reach if factors is None else reach * factors


def block_input_scale(reach: Tensor) -> float:
    """g for inputs whose channels are at most `reach` [in]: a block with `HEADROOM` times the largest of them has
    E4M3's largest number for its scale."""
    return max(HEADROOM * float(reach.max()) / (E4M3_MAX * VALUES[-1]), SMALLEST)
