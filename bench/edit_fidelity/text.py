"""Text in pictures, read by Tesseract (Debian: tesseract-ocr), and how far it is from the text that an edit asks for.

Letter case and spaces do not count: readers confuse them in letters that stand alone or far apart.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

TESSERACT = "tesseract"
SECONDS = 120
"""The longest that one picture may take."""

LINE, SCATTERED = "7", "11"
"""Tesseract's page segmentation modes: one line of text; as much text as can be found, in no order."""

LINE_HEIGHT = 120
"""Pixels that a line is enlarged to: Tesseract wants capitals of at least 20."""

QUOTED = r"""(?:"([^"]+)"|“([^”]+)”|‘([^’]+)’|(?<!\w)'([^']+)'(?!\w))"""
WANTED = re.compile(
    r"\b(?:to|with|into|by|says?|saying|reads?|reading|write|spells?|spelling|add|displays?)\s+"
    r"(?:(?:the|a|new|say|read|following|word|words|text|letter|letters|phrase|title|number|name|be)\s+)*"
    + QUOTED,
    re.IGNORECASE,
)


def why_unreadable() -> str | None:
    """Why no text can be read here; None if it can."""
    return None if shutil.which(TESSERACT) else f"{TESSERACT} is not installed (Debian: tesseract-ocr)"


def wanted_text(instruction: str) -> str | None:
    """The text that an instruction asks for: quoted, after a word such as "to", "with" or "says"; the last, if there
    are several: `change 'OPEN' to 'CLOSED'`. None if there is none."""
    found = [next(filter(None, match.groups())) for match in WANTED.finditer(instruction)]
    return found[-1].strip() or None if found else None


def read_line(picture: Image.Image) -> str:
    """The text of a picture of one line, which may be small."""
    factor = max(1, round(LINE_HEIGHT / picture.height))
    grey = picture.convert("L")
    large = grey.resize((grey.width * factor, grey.height * factor), Image.Resampling.LANCZOS)
    paper = int(np.median(np.asarray(large)))
    return " ".join(tesseract(ImageOps.expand(large, 20, fill=paper), LINE))


def read_words(picture: Image.Image) -> list[str]:
    """All words of a picture, in the order that Tesseract finds them in."""
    return tesseract(picture, SCATTERED)


def tesseract(picture: Image.Image, mode: str) -> list[str]:
    """The words that Tesseract reads; none if it fails on the picture."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    try:
        answer = subprocess.run(
            [TESSERACT, "-", "-", "--psm", mode],
            input=file.getvalue(),
            capture_output=True,
            timeout=SECONDS,
            check=True,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},  # its threads are slower than one on small pictures
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.decode(errors="replace").split()


def error_rate(words: Sequence[str], wanted: str) -> float:
    """Character error rate: edits of single characters that make the best run of the words read into the wanted text,
    by the length of that text; at most 1."""
    goal = plain(wanted)
    most = 2 * len(goal)
    runs = ("".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, i + 1 + most))
    near = {"", *(run for run in map(plain, runs) if len(run) <= most)}
    return min(edit_distance(run, goal) for run in near) / len(goal)


def plain(text: str) -> str:
    return "".join(text.casefold().split())


def edit_distance(text: str, other: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and replacements of a character."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(text, 1):
        before, row[0] = row[0], place
        for column, each in enumerate(other, 1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (letter != each)),
            )
    return row[-1]
