"""The manifest's colours of previews: read, absent in older bundles, and refused where they are none."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.runtime.fields import Fields
from kontext.runtime.preview_entry import PreviewEntry, read_preview

GOOD: dict[str, Any] = {"factors": [[1, 0.5, -2], [0, 0, 0]], "bias": [0.1, 0, 0]}


def read(data: dict[str, Any]) -> PreviewEntry | None:
    return read_preview(Fields(data, "manifest.json: "), 2)


def test_colours() -> None:
    assert read({"preview": GOOD}) == PreviewEntry(((1.0, 0.5, -2.0), (0.0, 0.0, 0.0)), (0.1, 0.0, 0.0))
    assert read({}) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"factors": [[1, 2, 3]]},
            "preview.factors must be a list of 2 colours, one for each latent channel",
        ),
        ({"factors": 3}, "preview.factors must be a list of 2 colours"),
        (
            {"factors": [[1, 2, 3], [1, 2]]},
            "preview.factors each must be 3 numbers from -1000 to 1000, not a list",
        ),
        ({"factors": [[1, 2, 3], [1, 2, True]]}, "preview.factors each must be 3 numbers"),
        ({"bias": [0, 0, float("nan")]}, "preview.bias must be 3 numbers"),
        ({"bias": [0, 0, 10**400]}, "preview.bias must be 3 numbers"),
        ({"bias": "red"}, "preview.bias must be 3 numbers from -1000 to 1000, not 'red'"),
    ],
)
def test_what_is_no_colour(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match="^" + re.escape(f"manifest.json: {message}")):
        read({"preview": GOOD | changed})
    with pytest.raises(KontextError, match=r"preview must be an object"):
        read({"preview": []})
