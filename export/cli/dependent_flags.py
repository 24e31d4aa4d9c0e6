"""Flags that mean nothing without another one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from ...errors import KontextError


def refuse_without(flag: str, options: argparse.Namespace, names: Iterable[str]) -> None:
    """Raises KontextError for the first of the options `names` that was given; all of them only apply with `flag`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False:
            raise KontextError(f"--{name.replace('_', '-')} only applies with {flag}")
