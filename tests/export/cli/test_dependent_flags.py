"""Flags that mean nothing without another one."""

from __future__ import annotations

import argparse

import pytest

from kontext.errors import KontextError
from kontext.export.cli.dependent_flags import refuse_without


def test_nothing_given_is_fine() -> None:
    refuse_without("--fit", argparse.Namespace(gpu=None, plan_only=False), ("gpu", "plan_only"))


@pytest.mark.parametrize("value", [0, 2, "", True])
def test_what_was_given_is_named(value: object) -> None:
    """A zero counts: --references 0 is a value."""
    options = argparse.Namespace(gpu=None, engine_batch=value)
    with pytest.raises(KontextError, match="--engine-batch only applies with --engine"):
        refuse_without("--engine", options, ("gpu", "engine_batch"))
