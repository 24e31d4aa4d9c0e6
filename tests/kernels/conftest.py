"""Kernels in Triton's interpreter, and what is right in the sense of these tests: float64, ‖out − ref‖ / ‖ref‖."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds to E4M3 as the hardware does.

    Triton's interpreter (3.9) drops the carry of a mantissa that rounds up to the next power of two (127.6 becomes
    64) and cuts subnormal numbers off instead of rounding them.
    """
    from triton.runtime import interpreter

    from kontext.kernels import adaln

    if type(adaln.adaln_kernel).__name__ != "InterpretedFunction":
        pytest.skip(
            "kernels run in the interpreter only where TRITON_INTERPRET is set before they are imported"
        )
    plain = interpreter._convert_float

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if str(source) == "fp32" and str(target) == "fp8e4nv":
            wide = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
            return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return plain(values, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def error(out: Any, reference: Any) -> float:
    """‖out − ref‖ / ‖ref‖ in float64; NaN never passes a bound."""
    out, reference = out.double(), reference.double()
    if not torch.isfinite(out).all():
        return float("nan")
    return float((out - reference).norm() / reference.norm().clamp(min=1e-300))


def check_codes(codes: Any, scales: Any, plain_codes: Any, plain_scales: Any, size: float) -> None:
    """Two quantizations of the same rows, computed in different orders: the same but for a few ties, which differ by
    one code. `size` is that of the inputs, whose rounding is all that rows of nothing but tails consist of."""
    one, other = codes.double() * scales[..., None], plain_codes.double() * plain_scales[..., None]
    spacing = torch.maximum(one.abs(), other.abs()) / 8 if codes.is_floating_point() else 0
    apart = (one - other).abs()
    noise = 1e-6 * size + 1e-5 * torch.maximum(one.abs(), other.abs())
    assert (apart <= spacing + scales[..., None].double() + noise).all()
    assert (apart > noise).sum() <= max(2, 0.02 * codes.numel())


def check_operator(operator: Any, operands: tuple[Any, ...]) -> None:
    """What it says it changes is what it changes, and its fake implementation has the real one's shapes and formats.

    PyTorch's comparison of what was changed has no E4M3 on a CPU.
    """
    coded = any(getattr(operand, "dtype", None) == torch.float8_e4m3fn for operand in operands)
    checks = ("test_faketensor",) if coded else ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, operands, test_utils=checks)
