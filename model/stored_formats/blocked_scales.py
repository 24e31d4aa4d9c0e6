"""Scales of blocks in the order that tensor cores read: tiles of 128 rows and 4 columns.

https://docs.nvidia.com/cuda/cublas/index.html, "1D block scaling factors layout"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .module import StoredModule
from .notes import check_keys

if TYPE_CHECKING:
    from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 128, 4


def check_blocks(module: StoredModule, format: str, columns: int, block: int) -> None:
    """Raises KontextError unless the rows of a weight are whole blocks, and its note says nothing else."""
    if columns % block:
        raise module.refuse(
            "weight", f"has rows of {columns} values, expected whole blocks of {block} for {format}"
        )
    shape = [module.weight.shape[0], columns]
    expected = {"group_size": (block,), "block_size": (block,), "orig_shape": (shape,)}
    check_keys(module.note_name, module.note, expected)


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of the tensor that holds the scales of [rows, columns] blocks: whole tiles."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def untile(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Scales [rows, columns] from `scales` of `tiled_shape`.

    The tiles follow each other row by row of tiles. In a tile, 32 groups of 16 follow each other: the four columns of
    row r, then those of r + 32, r + 64 and r + 96.
    """
    down, across = scales.shape[0] // TILE_ROWS, scales.shape[1] // TILE_COLUMNS
    tiles = scales.reshape(down, across, 32, 4, TILE_COLUMNS)  # [.., .., r, quarter, column]
    ordered = tiles.permute(0, 3, 2, 1, 4).reshape(down * TILE_ROWS, across * TILE_COLUMNS)
    return ordered[:rows, :columns]
