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


def check_operator(operator: Any, operands: tuple[Any, ...]) -> None:
    """What it says it changes is what it changes, and its fake implementation has the real one's shapes and formats.

    PyTorch's comparison of what was changed has no E4M3 on a CPU.
    """
    coded = any(getattr(operand, "dtype", None) == torch.float8_e4m3fn for operand in operands)
    checks = ("test_faketensor",) if coded else ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, operands, test_utils=checks)
