"""Regional compilation: torch.compile makes the code of one block of each kind, and all blocks of the kind run it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from ...errors import KontextError
from ...kernels.launch import triton

COMPILERS = {"cpu": ("CXX", ("g++", "clang++")), "cuda": ("CC", ("gcc", "clang"))}
"""Device → the variable that names the compiler that PyTorch's own code generator runs there, and its names."""


def compiled_block(function: Callable[..., None]) -> Callable[..., None]:
    """`function` (block, tensors …), compiled when it is first called; once for each kind of weights and each shape.

    Our kernels are operators of torch.library with fake implementations, so there is nothing in a block that the
    compiler cannot see through, and `fullgraph` holds it to that.
    """
    compiled: Callable[..., None] = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled


def check_compiler(device: torch.device) -> None:
    """Raises KontextError where torch.compile would find no compiler to run."""
    if device.type == "cuda" and triton is None:
        raise KontextError("compile needs Triton: pip install 'kontext-export[gpu]', or leave it out")
    variable, names = COMPILERS[device.type]
    asked = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([asked] if asked else names)):
        raise KontextError(
            f"compile needs a C++ compiler, and there is no {asked or ' or '.join(names)} on the PATH: install one, name "
            f"it in {variable}, or leave compile out"
        )
