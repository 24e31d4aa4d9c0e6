"""Compiled kernels of a bundle: kernels/<sm>/*.cubin, and kernels.json with everything that a launch needs.

    {"format": 1, "architecture": "sm_89", "made_from", "kernels": [
        {"name", "key", "file", "symbol", "shared", "warps", "arguments", "nulls", "constants"}]}

`key` is `Launch.key`: the kernel, its arguments' types and its constants. `arguments` lists (name, type) in the order
of the machine code's parameters; `nulls` null pointers follow them. A program has 32 * `warps` threads and `shared`
bytes of dynamic shared memory. `constants` are for readers, `made_from` is for those who make kernels.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import KontextError
from .compile import Compiled, compile_launch
from .int4 import MAX_RANK
from .launch import Launch, triton
from .variants import Sizes, Variant, variants

INDEX = "kernels.json"
FORMAT = 1

COMPUTE = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""A bundle's compute formats that kernels can be compiled for."""


def sizes_of(transformer: Mapping[str, Any], compute: str, ranks: Iterable[int] = ()) -> Sizes:
    """Sizes of the transformer in a manifest's `model.transformer`.

    Args:
        compute: the bundle's compute format.
        ranks: of INT4's and NVFP4's low-rank branches.

    Raises:
        KontextError: there are no kernels for this compute format.
    """
    if compute not in COMPUTE:
        raise KontextError(
            f"--kernels needs a bundle that computes in {' or '.join(COMPUTE)}, not in {compute}: export with --bf16"
        )
    hidden, heads = transformer["hidden_size"], transformer["num_heads"]
    return Sizes(
        hidden=hidden,
        heads=heads,
        mlp=int(hidden * transformer["mlp_ratio"]),
        ranks=tuple(sorted({rank for rank in ranks if 0 < rank <= MAX_RANK})),
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
    index = {
        "format": FORMAT,
        "architecture": f"sm_{arch}",
        "made_from": made_from(arch, sizes),
        "kernels": entries,
    }
    yield INDEX, (json.dumps(index, indent=1) + "\n").encode()


def made_from(arch: int, sizes: Sizes) -> str:
    """A digest of all that the machine code depends on: which kernels, their source, and Triton's version.

    Kernels with another one are of another version, and are compiled anew.
    """
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    keys = sorted({variant.launch.key() for variant in variants(arch, sizes)})
    version = None if triton is None else triton.__version__
    parts = [FORMAT, arch, version, source.hexdigest(), keys]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
