"""The manifest's `lora_slots`, as whoever made the bundle may have written it."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.runtime.fields import Fields
from kontext.runtime.lora_slots import LoraSlots, read_slots

ENTRY = {"max_rank": 32, "rows": {"transformer": [6, 8]}, "layout": "ab"}


def read(**changes: object) -> LoraSlots | None:
    return read_slots(Fields({"lora_slots": ENTRY | changes}, "m: "), ["transformer"])


def test_a_bundle_with_slots() -> None:
    assert read() == LoraSlots(32, {"transformer": (6, 8)}, "ab")


def test_a_bundle_without() -> None:
    assert read_slots(Fields({}, "m: "), ["transformer"]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_rank": 0}, "lora_slots.max_rank must be a whole number from 1 to 1024, not 0"),
        ({"max_rank": 1 << 40}, "lora_slots.max_rank must be"),
        ({"rows": {"transformer": [6]}}, "lora_slots.rows.transformer must be 2 whole numbers"),
        ({"rows": {"transformer": [6, 1 << 27]}}, "lora_slots.rows.transformer must be 2 whole numbers"),
        ({"rows": {"other": [6, 8]}}, "lora_slots.rows.other is not one of the bundle's graphs"),
        ({"rows": []}, "lora_slots.rows must be an object"),
        ({"layout": 3}, "lora_slots.layout must be a non-empty string"),
    ],
)
def test_damaged_entries(change: dict[str, object], message: str) -> None:
    with pytest.raises(KontextError, match=message):
        read(**change)
