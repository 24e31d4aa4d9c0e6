"""A kernel's launch as data: run by Triton's JIT, or compiled ahead of time; and Triton, if it is installed.

Each kernel has a `plan_<operator>` that makes a `Launch` from its tensors. The ahead-of-time compiler makes the same
Launch from `meta` tensors and reads the signature off it, so it compiles exactly what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..compute_capability import dotted
from ..errors import KontextError
from ..installation import install_command

try:
    import triton
    import triton.language as tl
except ImportError:  # reference implementations do without it, and bundles may contain compiled kernels
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
"""What a computation may raise if it cannot run here: format not supported, out of memory or of shared memory."""

FP8_CAPABILITY = 89
"""The first compute capability whose tensor cores take E4M3, 8.9 (Ada)."""

MIN_CAPABILITY = 80
"""The first compute capability that the kernels are written for, 8.0 (Ampere)."""


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit`; without Triton the function itself."""

    def decorate(function: Callable[..., Any]) -> Any:
        return function if triton is None else triton.jit(function, **options)

    return decorate


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: a function decorated with `jit`.
        grid: programs along each of three axes; if one is zero, nothing runs.
        arguments: name → tensor, int, float, or None for one that the constants switch off.
        constants: name → value of every `tl.constexpr` parameter.
        warps: per program; a warp has 32 threads.
        stages: loads in flight in the kernel's loop (Triton's `num_stages`).
        varying: arguments that change from call to call, such as the number of tokens: code is not specialized for
            them.
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
        """Starts the kernel on the current stream of the arguments' device.

        Raises:
            KontextError: Triton is not installed, and no compiled kernel is registered for this launch.
        """
        if 0 in self.grid:
            return
        if triton is None:
            run_compiled(self)
            return
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compiler options, the same for JIT and ahead-of-time compilation."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def signature(self) -> dict[str, str]:
        """Triton's type of every run-time argument; None is compiled in."""
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
        """Arguments that the compiled code assumes to be multiples of 16: tensors' addresses and fixed sizes."""
        return tuple(
            name
            for name, value in self.arguments.items()
            if isinstance(value, Tensor)
            or (isinstance(value, int) and value % 16 == 0 and name not in self.varying)
        )

    def key(self) -> str:
        """Identifies the compiled code: launches with the same key share it."""
        parts = [f"{name}:{kind}" for name, kind in self.signature().items()]
        parts += [f"{name}%16" for name in self.aligned()]
        parts += [f"{name}={value}" for name, value in sorted(self.constants.items())]
        return " ".join([self.name, *parts, f"warps={self.warps}", f"stages={self.stages}"])


COMPILED: dict[str, Callable[[Launch], None]] = {}
"""`Launch.key` → what starts the compiled kernel; filled by `driver.register`."""


def run_compiled(launch: Launch) -> None:
    start = COMPILED.get(launch.key())
    if start is None:
        raise KontextError(
            f"the bundle has no compiled {launch.name} for this GPU, and Triton is not installed: "
            f"{install_command('kernels')}, or export with --kernels for this GPU"
        )
    start(launch)


def capability(tensor: Tensor) -> int:
    """Compute capability of a tensor's device, 90 for 9.0; also 90 if it is not a GPU (interpreter, meta tensors)."""
    return device_capability(tensor.device) if tensor.device.type == "cuda" else 90


def device_capability(device: torch.device) -> int:
    """Compute capability of a GPU, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def require_capability(arch: int) -> None:
    """Raises KontextError for a GPU that the kernels are not written for; `arch` is 75 for 7.5."""
    require(
        arch >= MIN_CAPABILITY,
        f"the kernels need compute capability 8.0 (Ampere), this GPU has {dotted(arch)}",
    )


def require_fp8(arch: int, needs: str, instead: str) -> None:
    """Raises KontextError for a GPU without FP8 tensor cores.

    Args:
        arch: 86 for 8.6.
        needs: such as "FP8 attention needs".
        instead: what to use on this GPU.
    """
    require(
        arch >= FP8_CAPABILITY,
        f"{needs} compute capability 8.9 (Ada), this GPU has {dotted(arch)}: use {instead}",
    )


def require(condition: bool, message: str) -> None:
    """Raises KontextError with `message` unless `condition` holds.

    Every launch is checked so, since a kernel would compute wrong numbers from operands that it does not take.
    """
    if not condition:
        raise KontextError(message)
