"""Names of GPUs, as people write them and as they mistype them."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.quant.gpus import find_target


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
    with pytest.raises(KontextError, match=r"unknown GPU .*: name an architecture \(sm_75, .*RTX 4090"):
        find_target(text)
