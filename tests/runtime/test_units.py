"""Sizes of memory, as people write them and as they mistype them."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.runtime.units import gigabytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GB", 12 * 10**9),
        ("12 gb", 12 * 10**9),
        ("7.5GiB", int(7.5 * 2**30)),
        ("900MB", 900 * 10**6),
        ("1.5e", None),
        ("16g", 16 * 10**9),
        ("3kB", 3000),
        ("3 KiB", 3072),
        ("2MiB", 2097152),
        ("2Gi", 2147483648),
        ("1B", 1),
        ("1.9B", 1),
        ("4096b", 4096),
        (".5GB", 5 * 10**8),
        ("12 parsecs", None),
        ("", None),
        ("-3GB", None),
        ("GB", None),
        ("1,5GB", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    if size is not None:
        assert parse_bytes(text) == size
        return
    with pytest.raises(KontextError, match="is not a size of memory: write 12GB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["12", " 12 ", "7.5", "4096"])
def test_a_number_alone_could_be_anything(text: str) -> None:
    number = text.strip()
    with pytest.raises(KontextError, match=rf"^--fit {number}: say {number}GB or {number}GiB$"):
        parse_bytes(text, "--fit")
    with pytest.raises(KontextError, match=rf"^{number} is a size without a unit: say {number}GB or"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "0GB", "0.0 MiB", "0.9B"])
def test_a_budget_of_nothing(text: str) -> None:
    with pytest.raises(KontextError, match="must be more than 0"):
        parse_bytes(text)


def test_gigabytes() -> None:
    assert (gigabytes(12e9), gigabytes(5e6)) == ("12.00 GB", "5.0 MB")
    assert (gigabytes(100_000_000), gigabytes(99_900_000)) == ("0.10 GB", "99.9 MB")
