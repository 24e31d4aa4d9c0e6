"""Numbers in messages, whatever was given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kontext.errors import KontextError
from kontext.runtime.number_checks import checked_scale, checked_share


@pytest.mark.parametrize("check", [checked_scale, checked_share])
@pytest.mark.parametrize("value", [10**5000, -(10**5000), float("nan"), float("inf"), "1", True, None, 1001])
def test_what_is_no_number_of_its_range(check: Callable[[object, str], float], value: object) -> None:
    """Python itself refuses to write a whole number of more than 4300 digits."""
    with pytest.raises(KontextError, match="^x must be "):
        check(value, "x")
