"""Triton where it is installed, and a kernel's launch as data: run by Triton's JIT, or compiled ahead of time.

A launcher makes a `Launch` from its tensors. The ahead-of-time compiler makes the same one from `meta` tensors and
reads the signature off it, so what it checks is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..compute_capability import dotted
from ..errors import KontextError

try:
    import triton
    import triton.language as tl
except ImportError:  # the operators' PyTorch meanings need none, and bundles may bring compiled kernels
    triton = tl = None

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
}
FAILURES: tuple[type[Exception], ...] = (
    (RuntimeError,) if triton is None else (RuntimeError, triton.TritonError)
)
"""What a way to compute may raise where it cannot run here: no such format, no room, too little shared memory."""

FP8_CAPABILITY = 89
"""Compute capability from which on the tensor cores take E4M3."""

MIN_CAPABILITY = 80


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit`, or the function as it is where there is no Triton."""

    def decorate(function: Callable[..., Any]) -> Any:
        return function if triton is None else triton.jit(function, **options)

    return decorate


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: a function under `jit`.
        grid: programs along each of three axes.
        arguments: name → tensor, whole number, fraction, or None for what the constants say is not used.
        constants: name → value of every `tl.constexpr` parameter.
        varying: arguments that change from call to call (numbers of tokens): no code is specialized for them.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    varying: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return str(getattr(self.kernel, "__name__", None) or self.kernel.fn.__name__)

    def run(self) -> None:
        """Starts it on the current stream of the arguments' device.

        Raises:
            KontextError: Triton is not installed, and no compiled kernel was registered for this launch.
        """
        if triton is None:
            run_compiled(self)
            return
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's, for both ways."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def signature(self) -> dict[str, str]:
        """Triton's type of every argument that is passed at run time; what is None is a constant."""
        types = {}
        for name, value in self.arguments.items():
            if isinstance(value, Tensor):
                types[name] = f"*{TRITON_TYPES[value.dtype]}"
            elif isinstance(value, float):
                types[name] = "fp32"
            elif value is not None:
                types[name] = "i64" if abs(value) > 0x7FFFFFFF else "i32"
        return types

    def aligned(self) -> tuple[str, ...]:
        """Arguments that the compiled code may take for multiples of 16: tensors' addresses and fixed sizes."""
        return tuple(
            name
            for name, value in self.arguments.items()
            if isinstance(value, Tensor)
            or (isinstance(value, int) and value % 16 == 0 and name not in self.varying)
        )

    def key(self) -> str:
        """Names the compiled code: launches of one key can share it."""
        parts = [f"{name}:{kind}" for name, kind in self.signature().items()]
        parts += [f"{name}%16" for name in self.aligned()]
        parts += [f"{name}={value}" for name, value in sorted(self.constants.items())]
        return " ".join([self.name, *parts, f"warps={self.warps}", f"stages={self.stages}"])


COMPILED: dict[str, Callable[[Launch], None]] = {}
"""`Launch.key` → what starts the compiled kernel; filled by `launcher.register`."""


def run_compiled(launch: Launch) -> None:
    start = COMPILED.get(launch.key())
    if start is None:
        raise KontextError(
            f"kernel {launch.name} is not among the bundle's compiled ones for this GPU, and Triton is not "
            "installed: pip install 'kontext-export[gpu]', or export with --kernels for this GPU"
        )
    start(launch)


def capability(tensor: Tensor) -> int:
    """Compute capability of a tensor's device, as 90 for 9.0; 90 too where there is none (interpreter, meta)."""
    return device_capability(tensor.device) if tensor.device.type == "cuda" else 90


def device_capability(device: torch.device) -> int:
    """Compute capability of a GPU, as 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def require_capability(arch: int, fp8: str, instead: str) -> None:
    """Raises KontextError for a GPU that is too old; `fp8` says what of it needs E4M3 (nothing: ""), and what to do
    without."""
    require(arch >= MIN_CAPABILITY, f"these kernels need compute capability 8.0, this GPU has {dotted(arch)}")
    require(
        not fp8 or arch >= FP8_CAPABILITY,
        f"{fp8} compute capability 8.9 (Ada), this GPU has {dotted(arch)}: use {instead}",
    )


def require(condition: bool, message: str) -> None:
    """Raises KontextError with `message` unless `condition` holds: what a kernel cannot take is never computed
    wrong."""
    if not condition:
        raise KontextError(message)
