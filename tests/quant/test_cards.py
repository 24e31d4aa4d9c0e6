"""Cards' rates against the figures in NVIDIA's whitepapers, and names as people write them."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.quant.cards import CARDS, SM_OPERATIONS, find_card, short_name


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        # Ampere GA102, Ada and RTX Blackwell whitepapers, and the data-centre cards' data sheets: dense, in 10^12.
        ("RTX 3090", {"bf16": 71.2, "int8": 284.7}),
        ("RTX 4090", {"bf16": 165.2, "fp8": 330.3, "int8": 660.6}),
        ("RTX 5090", {"bf16": 209.5, "fp8": 419, "int8": 838, "nvfp4": 1676}),
        ("A100", {"bf16": 312, "int8": 624}),
        ("H100", {"bf16": 989.4, "fp8": 1978.9, "int8": 1978.9}),
        ("L4", {"fp16": 121, "fp8": 242, "int8": 242}),
        ("T4", {"fp16": 65, "int8": 130}),
    ],
)
def test_rates_are_the_published_ones(name: str, rates: dict[str, float]) -> None:
    card = find_card(name)
    assert {format: (card.rate(format) or 0) / 1e12 for format in rates} == pytest.approx(rates, rel=3e-3)


def test_formats_that_tensor_cores_lack() -> None:
    assert find_card("RTX 2080 Ti").rate("bf16") is None
    assert find_card("RTX 3060").rate("fp8") is None
    assert find_card("RTX 4090").rate("nvfp4") is None


@pytest.mark.parametrize(
    "text", ["RTX 4060 Ti 16GB", "4060ti16gb", "rtx-4060-ti-16gb", "NVIDIA GeForce RTX 4060 Ti 16 GB"]
)
def test_names(text: str) -> None:
    assert find_card(text).name == "RTX 4060 Ti 16GB"


@pytest.mark.parametrize(
    ("text", "name"), [("RTX 4090 24GB", "RTX 4090"), ("4060 Ti 8GB", "RTX 4060 Ti"), ("h200 141 GB", "H200")]
)
def test_memory_that_a_card_has_anyway(text: str, name: str) -> None:
    assert find_card(text).name == name


def test_every_card_is_told_apart() -> None:
    assert len({short_name(card.name) for card in CARDS}) == len(CARDS)
    assert {card.capability for card in CARDS} <= set(SM_OPERATIONS)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("RTX 4095", "RTX 4090"),
        ("4090ti", "RTX 4090"),
        ("RTX 4090 16GB", "RTX 4090"),
        ("A6000", ""),
        ("rtx 3061", "RTX 3060"),
        ("", "RTX 3060, RTX 4090, RTX 5090"),
    ],
)
def test_unknown_cards_name_the_nearest(text: str, near: str) -> None:
    with pytest.raises(KontextError, match=f"unknown card .*nearest are .*{near}.*--fit SIZE --gpu sm_XX"):
        find_card(text)
