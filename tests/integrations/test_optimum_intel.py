"""Without its libraries; with them it is tested in `tests/install/test_optimum.py`."""

from __future__ import annotations

import importlib
import sys

import pytest


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs optimum-intel, .*: pip install .*\[openvino,optimum\]"):
        importlib.import_module("kontext.integrations.optimum_intel")
