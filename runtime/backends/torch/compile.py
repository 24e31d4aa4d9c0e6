"""Regional compilation: torch.compile makes the code of one block of each kind, and all blocks of the kind run it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....errors import KontextError
from ....kernels.launch import triton

COMPILERS = {"cpu": ("CXX", ("g++",)), "cuda": ("CC", ("gcc", "clang"))}
"""Device → the variable that names the compiler that PyTorch or Triton runs there, and the names they try without."""

VARIANTS = 64
"""Pieces of code for one kind of block, before it runs as it is: one for each shape of its inputs and each mix of
number formats, of which a bundle made to fit a budget has several. PyTorch's own limit is 8."""


def compiled_block(function: Callable[..., None]) -> Callable[..., None]:
    """`function` of a block and tensors, compiled; as `compile_repeated_blocks` does in diffusers.

    The first block of each shape runs as it is: on a GPU that measures the ways to compute its products, which the
    compiled code then takes the fastest of.

    Raises:
        KontextError: from the function, where the compiler fails.
    """
    # Static sizes: on a GPU what is fastest depends on them.
    compiled = torch.compile(function, dynamic=False)
    seen: set[tuple[torch.Size, ...]] = set()

    def run(*arguments: Any) -> None:
        shapes = tuple(each.shape for each in arguments if isinstance(each, Tensor))
        if shapes not in seen:
            seen.add(shapes)
            function(*arguments)
            return
        try:
            with torch._dynamo.config.patch(recompile_limit=VARIANTS):
                compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next(iter(str(error).split("\n")), "")
            raise KontextError(f"torch.compile failed, leave compile out: {reason}") from None

    return run


def check_compiler(device: torch.device) -> None:
    """Raises KontextError where torch.compile would find no compiler to run."""
    if device.type == "cuda" and triton is None:
        raise KontextError("compile needs Triton: pip install 'kontext-export[gpu]', or leave compile out")
    variable, names = COMPILERS[device.type]
    asked = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([asked] if asked else names)):
        raise KontextError(
            f"compile needs a C++ compiler, and there is no {asked or ' or '.join(names)} on the PATH: install one, "
            f"name it in {variable}, or leave compile out"
        )
