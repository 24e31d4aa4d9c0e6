"""Launches as data: signature, alignment, key; and what a launch of nothing or outside of memory does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kontext.kernels import launch, residual


def gate_residual(tokens: int = 3, width: int = 64) -> launch.Launch:
    x = torch.zeros(1, tokens, width, dtype=torch.bfloat16)
    return residual.plan_gate_residual(x, torch.zeros(1, width, dtype=torch.bfloat16), x.clone())


def test_the_signature_has_tritons_types() -> None:
    planned = gate_residual()
    assert planned.signature()["x"] == "*bf16"
    assert planned.signature()["tokens"] == "i32"
    arguments = {
        "large": 1 << 31,
        "scale": 0.5,
        "unused": None,
        "codes": torch.zeros(1).to(torch.float8_e4m3fn),
    }
    assert replace(planned, arguments=arguments).signature() == {
        "large": "i64",
        "scale": "fp32",
        "codes": "*fp8e4nv",
    }


def test_code_is_specialized_for_sizes_but_not_for_tokens() -> None:
    assert gate_residual(tokens=16).key() == gate_residual(tokens=17).key()
    assert "tokens" not in gate_residual(tokens=16).aligned()
    assert "x_token" in gate_residual(width=64).aligned()
    assert "x_token" not in gate_residual(width=72).aligned()
    assert gate_residual(width=64).key() != gate_residual(width=72).key()


def test_a_grid_of_no_programs_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "triton", None)  # without Triton, anything that is launched raises
    gate_residual(tokens=0).run()


@pytest.mark.parametrize(("n", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_powers_of_two(n: int, expected: int) -> None:
    assert launch.power_of_two(n) == expected


def test_the_interpreter_refuses_addresses_outside_of_tensors() -> None:
    """The check of all these tests: one row more than there are."""
    planned = gate_residual(tokens=3)
    with pytest.raises(Exception, match="64 of 64 addresses are outside the kernel's tensors"):
        replace(planned, grid=(4, 1, 1), arguments={**planned.arguments, "tokens": 4}).run()
