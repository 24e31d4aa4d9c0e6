"""Compiled kernels of a bundle: kernels/<sm>/*.cubin, and kernels.json with everything that a launch needs.

    {"format": 1, "architecture": "sm_89", "kernels": [
        {"name", "key", "file", "symbol", "shared", "warps", "arguments", "nulls", "constants"}]}

`key` is `Launch.key`: the kernel, its arguments' types and its constants. `arguments` lists (name, type) in the order
of the machine code's parameters; `nulls` null pointers follow them. A program has 32 * `warps` threads and `shared`
bytes of dynamic shared memory. `constants` are for readers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import KontextError
from .compile import Compiled, compile_launch
from .launch import Launch
from .variants import Sizes, Variant, variants

INDEX = "kernels.json"
FORMAT = 1

COMPUTE = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""A bundle's compute formats that kernels can be compiled for."""


def sizes_of(transformer: dict[str, Any], compute: str, rank: int = 32) -> Sizes:
    """Sizes of the transformer in a manifest's `model.transformer`.

    Args:
        compute: the bundle's compute format.
        rank: of INT4's low-rank branches.

    Raises:
        KontextError: there are no kernels for this compute format.
    """
    if compute not in COMPUTE:
        raise KontextError(
            f"--kernels needs a bundle that computes in {' or '.join(COMPUTE)}, not in {compute}: add --bf16"
        )
    hidden, heads = transformer["hidden_size"], transformer["num_heads"]
    return Sizes(
        hidden=hidden,
        heads=heads,
        mlp=int(hidden * transformer["mlp_ratio"]),
        rank=rank,
        compute=COMPUTE[compute],
    )


def archive(
    arch: int, sizes: Sizes, only: str | None = None, advance: Callable[[int], object] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Compiles all kernels for one architecture; yields name and bytes of each file, the index last.

    Args:
        arch: compute capability, 89 for 8.9.
        sizes: of the transformer.
        only: a regular expression that kernels' names must match.
        advance: called with 1 after each kernel.

    Raises:
        KontextError: Triton is not installed or cannot compile a kernel.
    """
    entries: list[dict[str, Any]] = []
    seen: set[str] = set()
    for variant in variants(arch, sizes):
        key = variant.launch.key()
        if key in seen or (only is not None and not re.search(only, variant.name)):
            continue
        seen.add(key)
        compiled = compile_launch(variant.launch, arch)
        name = f"{len(entries):03}-{variant.launch.name}.cubin"
        entries.append(entry(name, variant, compiled))
        yield name, compiled.cubin
        if advance is not None:
            advance(1)
    index = {"format": FORMAT, "architecture": f"sm_{arch}", "kernels": entries}
    yield INDEX, (json.dumps(index, indent=1) + "\n").encode()


def entry(file: str, variant: Variant, compiled: Compiled) -> dict[str, Any]:
    """A kernel's entry of the index."""
    launch = variant.launch
    arguments = ordered(launch)
    if compiled.scratch:
        raise KontextError(f"{variant.name} needs scratch memory, which the drivers do not allocate")
    return {
        "name": variant.name,
        "key": launch.key(),
        "file": file,
        "symbol": compiled.symbol,
        "shared": compiled.shared,
        "warps": compiled.warps,
        "arguments": [list(argument) for argument in arguments],
        "nulls": compiled.parameters - len(arguments),
        "constants": {name: value for name, value in launch.constants.items() if value is not None},
    }


def ordered(launch: Launch) -> list[tuple[str, str]]:
    """Name and type of each argument, in the order of the kernel's parameters."""
    types = launch.signature()
    return [(name, types[name]) for name in launch.kernel.arg_names if name in types]
