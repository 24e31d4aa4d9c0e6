"""Numbers in messages, whatever was given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kontext.errors import KontextError
from kontext.runtime.number_checks import checked_scale, checked_share


@pytest.mark.parametrize("check", [checked_scale, checked_share])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None, 1001])
def test_what_is_no_number_of_its_range(check: Callable[[object, str], float], value: object) -> None:
    with pytest.raises(KontextError, match=r"^x must be "):
        check(value, "x")


@pytest.mark.parametrize("check", [checked_scale, checked_share])
def test_a_number_that_python_does_not_write(check: Callable[[object, str], float]) -> None:
    """Of more than 4300 digits; pytest cannot name it either."""
    for value in (10**5000, -(10**5000)):
        with pytest.raises(KontextError, match=r"^x must be .*, not one of thousands of digits"):
            check(value, "x")
