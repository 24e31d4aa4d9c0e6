"""Runs kernels in Triton's interpreter, and measures errors as ‖out − ref‖ / ‖ref‖ against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the interpreter round to E4M3 as the hardware does, and read scales in E4M3.

    Triton's interpreter (3.9) drops the carry of a mantissa that rounds up to the next power of two (127.6 becomes
    64) and truncates subnormal numbers instead of rounding them. Of `tl.dot_scaled` it takes all scales for E8M0.
    """
    from triton.runtime import interpreter

    from kontext.kernels import adaln

    if type(adaln.adaln_kernel).__name__ != "InterpretedFunction":
        pytest.skip("kernels run in the interpreter only if TRITON_INTERPRET is set before they are imported")
    plain = interpreter._convert_float

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if str(source) == "fp32" and str(target) == "fp8e4nv":
            wide = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
            return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return plain(values, source, target, rounding)

    of_e8m0 = interpreter._dot_scaled_scale_to_f32

    def scale_to_float(scale: Any, compute_type: Any) -> Any:
        if str(scale.dtype) == "fp8e4nv":
            return torch.from_numpy(scale.data).view(torch.float8_e4m3fn).float().numpy()
        return of_e8m0(scale, compute_type)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter, "_dot_scaled_scale_to_f32", scale_to_float)


@pytest.fixture(autouse=True)
def checked_addresses(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the interpreter refuse loads and stores outside a launch's tensors, as compute-sanitizer does on a GPU."""
    from triton.runtime.interpreter import InterpreterBuilder

    from kontext.kernels.launch import Launch

    extents: list[tuple[int, int]] = []
    run, load, store = (
        Launch.run,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )

    def run_checked(self: Launch) -> None:
        extents[:] = [extent(value) for value in self.arguments.values() if isinstance(value, torch.Tensor)]
        run(self)

    def check(pointers: Any, mask: Any) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        inside = np.zeros(addresses.shape, bool)
        for first, end in extents:
            inside |= (addresses >= first) & (addresses + size <= end)
        assert inside.all(), f"{(~inside).sum()} of {inside.size} addresses are outside the kernel's tensors"

    def checked_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *others)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        check(pointers, mask)
        return store(self, pointers, value, mask, *others)

    monkeypatch.setattr(Launch, "run", run_checked)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)


def extent(tensor: Any) -> tuple[int, int]:
    """The first address of a tensor's elements, and the address after the last."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((count - 1) * stride for count, stride in steps)
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def error(out: Any, reference: Any) -> float:
    """‖out − ref‖ / ‖ref‖ in float64; NaN, which fails every bound, if `out` is not finite."""
    out, reference = out.double(), reference.double()
    if not torch.isfinite(out).all():
        return float("nan")
    return float((out - reference).norm() / reference.norm().clamp(min=1e-300))


def check_codes(codes: Any, scales: Any, reference_codes: Any, reference_scales: Any, size: float) -> None:
    """Asserts that two quantizations of the same rows are equal but for a few ties, which differ by one code.

    They sum in different orders. `size` is the inputs' magnitude: a row of GELU's tails consists of rounding errors.
    """
    one, other = codes.double() * scales[..., None], reference_codes.double() * reference_scales[..., None]
    spacing = torch.maximum(one.abs(), other.abs()) / 8 if codes.is_floating_point() else 0
    apart = (one - other).abs()
    noise = 1e-6 * size + 1e-5 * torch.maximum(one.abs(), other.abs())
    assert (apart <= spacing + scales[..., None].double() + noise).all()
    assert (apart > noise).sum() <= max(2, 0.02 * codes.numel())


def check_operator(operator: Any, operands: tuple[Any, ...]) -> None:
    """Asserts that an operator changes what its schema says, and that its fake implementation returns the shapes and
    dtypes of the real one.

    PyTorch's check of what is changed does not support E4M3 on a CPU.
    """
    coded = any(getattr(operand, "dtype", None) == torch.float8_e4m3fn for operand in operands)
    checks = ("test_faketensor",) if coded else ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, operands, test_utils=checks)
