"""The table of predicted and measured fidelity, from the result alone."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from kontext.bench.memory import plan_fidelity

ROW = {"choices": "int8+int8", "budget": 650_000_000, "layers": {"int8+int8": 9, "compute": 3}}


def test_rows_have_the_difference() -> None:
    result = {
        "what": "plan-fidelity",
        "model": "kontext-tiny",
        "edits": 9,
        "rows": [ROW | {"predicted": 30.0, "measured": 28.8}],
        "median_error": 1.2,
    }
    (table,) = plan_fidelity.tables(result)
    assert table.rows == [["int8+int8", "650.0", "3 compute, 9 int8+int8", "30.0", "28.8", "+1.2"]]
    assert "median absolute difference 1.2 dB" in plan_fidelity.footer(result)
