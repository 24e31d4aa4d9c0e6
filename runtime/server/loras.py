"""LoRAs that a request names: files of one folder, which whoever runs the server fills."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import KontextError
from ..number_checks import checked_scale

MOST = 8
"""Of one request."""

REQUESTED = re.compile(
    r"(?P<name>[\w-][\w.+-]{0,99}?)(\.safetensors)?(:(?P<weight>[-+.\de]{1,20}))?", re.ASCII
)
"""NAME[.safetensors][:WEIGHT]; a name has no separators of paths."""

SHOWN = 10
"""Names in a message."""


def requested_loras(folder: Path | None, values: Sequence[object]) -> list[tuple[Path, float]]:
    """File and weight of each requested LoRA.

    Args:
        folder: with files that `kontext-export lora` has made ready, NAME.safetensors; None: there are none.
        values: NAME or NAME:WEIGHT, as bytes in UTF-8 or as texts.

    Raises:
        KontextError: there is no such LoRA, or too many are requested.
    """
    if len(values) > MOST:
        raise KontextError(f"LORAS may have at most {MOST} entries, not {len(values)}")
    return [requested_lora(folder, value) for value in values]


def requested_lora(folder: Path | None, value: object) -> tuple[Path, float]:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    found = REQUESTED.fullmatch(text)
    weight = None if found is None else number(found["weight"])
    if found is None or weight is None:
        raise KontextError(f"LORAS takes NAME or NAME:WEIGHT, such as style:0.8, not {text!r:.120}")
    path = None if folder is None else folder / f"{found['name']}.safetensors"
    if path is None or not path.is_file():
        files = [] if folder is None else folder.glob("*.safetensors")
        names = sorted(each.stem for each in files if each.is_file() and REQUESTED.fullmatch(each.name))
        listed = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        raise KontextError(
            f"there is no LoRA {found['name']!r} here: there {f'are {listed}' if names else 'are none'}"
        )
    return path, checked_scale(weight, f"the weight of {found['name']}")


def number(text: str | None) -> float | None:
    """A weight, 1 by default; None if it is no number."""
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        return None
