"""Regional compilation: torch.compile generates code for one block of each kind, which all blocks of the kind run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....child_process import protect_libraries
from ....errors import KontextError
from ....installation import install_command
from ....kernels.launch import triton

COMPILERS = {"cpu": ("CXX", ("g++",)), "cuda": ("CC", ("gcc", "clang"))}
"""Device → the variable that names the compiler for PyTorch (CPU) or Triton (CUDA), and the defaults without it."""

VARIANTS = 64
"""Compilations of one kind of block before it runs uncompiled: one for each shape of its inputs and each mix of number
formats, of which a bundle made with --fit has several. PyTorch's default is 8."""


def compiled_block(function: Callable[..., None]) -> Callable[..., None]:
    """`function` of a block and tensors, compiled; as diffusers' `compile_repeated_blocks` does.

    The first block of each shape runs uncompiled: on a GPU that times the candidates for its products, and the
    compiled code uses the fastest.

    Raises:
        KontextError: from the returned function, if the compiler fails.
    """
    # Static sizes: on a GPU the fastest candidate depends on them.
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
            raise KontextError(f"torch.compile failed, run without --compile: {reason}") from None

    return run


def check_compiler(device: torch.device) -> None:
    """Raises KontextError if torch.compile would find no compiler."""
    protect_libraries()
    if device.type == "cuda" and triton is None:
        raise KontextError(f"--compile needs Triton: {install_command('kernels')}, or run without --compile")
    variable, names = COMPILERS[device.type]
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else names)):
        raise KontextError(
            f"--compile needs a C++ compiler, but {named or ' or '.join(names)} is not on the PATH: install one, "
            f"name it in {variable}, or run without --compile"
        )
