"""Names of GPUs and sizes of memory, as people write them and as they mistype them."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.quant.targets import find_target, gigabytes, parse_size


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sm_89", "sm_89"),
        ("SM89", "sm_89"),
        ("8.9", "sm_89"),
        ("RTX 4090", "sm_89"),
        ("NVIDIA GeForce RTX 3090", "sm_86"),
        ("h100", "sm_90"),
        ("sm_90a", "sm_90"),
        ("12.0", "sm_120"),
        ("rtx5090", "sm_120"),
        ("T4", "sm_75"),
        ("CPU", "cpu"),
    ],
)
def test_targets(text: str, name: str) -> None:
    assert find_target(text).name == name


def test_formats_follow_the_architecture() -> None:
    assert find_target("sm_86").formats == ("int8", "int4", "uint4", "nf4")
    assert find_target("sm_89").formats == ("fp8", "int8", "int4", "uint4", "nf4")
    assert find_target("sm_120").formats == ("fp8", "int8", "int4", "uint4", "nf4", "nvfp4")
    assert find_target("cpu").formats == ("int8", "int4")


@pytest.mark.parametrize("text", ["sm_70", "sm_91", "rtx 9999", "", "gpu", "sm_", "89.5"])
def test_unknown_gpus_are_refused(text: str) -> None:
    with pytest.raises(KontextError, match=r"is not known: name an architecture \(sm_75, .*RTX 4090"):
        find_target(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GB", 12 * 10**9),
        ("12 gb", 12 * 10**9),
        ("7.5GiB", int(7.5 * 2**30)),
        ("900MB", 900 * 10**6),
        ("1.5e", None),
        ("16g", 16 * 10**9),
        ("4096", 4096),
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
        assert parse_size(text) == size
        return
    with pytest.raises(KontextError, match="is not a size of memory: write 12GB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0GB", "0.0 MiB"])
def test_a_budget_of_nothing(text: str) -> None:
    with pytest.raises(KontextError, match="holds nothing"):
        parse_size(text)


def test_gigabytes() -> None:
    assert (gigabytes(12e9), gigabytes(5e6)) == ("12.00 GB", "5.0 MB")
