"""What a model is calibrated on: pictures with the instructions to edit them.

A folder of the user's, read here, or for the embedded model scenes of the tiny world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...errors import KontextError
from ...runtime.images import open_picture

FEWEST = 4
"""Samples below which a calibration would tell of single pictures."""

SCENES = 16
"""Samples of the built-in set: a second of two cores each."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Sample:
    """An edit: the instruction, and the reference (in memory, or a file), or None to draw from nothing."""

    prompt: str
    source: Image.Image | Path | None

    def picture(self) -> Image.Image | None:
        """The reference; a file is read anew each time, so that a folder of photographs need not fit into memory."""
        return open_picture(self.source) if isinstance(self.source, Path) else self.source


@dataclass(frozen=True)
class Samples:
    """`skipped` says of every picture that could not be used why."""

    name: str
    samples: Sequence[Sample]
    skipped: Sequence[str] = field(default_factory=list)

    def digest(self) -> str:
        """Of prompts and pixels: the same samples give the same statistics."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(sample.prompt.encode() + b"\0")
            if isinstance(sample.source, Path):
                digest.update(sample.source.read_bytes())
            elif sample.source is not None:
                digest.update(repr(sample.source.size).encode() + sample.source.tobytes())
        return digest.hexdigest()


def read_samples(folder: Path) -> Samples:
    """The pairs in `folder`: NAME.png beside NAME.txt, or metadata.jsonl with `file_name` and `prompt` (or `text`).

    Raises:
        KontextError: there are fewer than `FEWEST` usable pairs.
    """
    if not folder.is_dir():
        raise KontextError(f"{folder} is not a folder of pictures and instructions")
    prompts = listed_prompts(folder)
    samples, skipped = [], []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        prompt = prompts.get(path.name)
        try:
            if prompt is None:
                prompt = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            if not prompt:
                skipped.append(f"{path.name}: its instruction is empty")
                continue
            open_picture(path)  # every fault of the set is known before hours are spent on it
            samples.append(Sample(prompt, path))
        except KontextError as error:
            skipped.append(f"{path.name}: {error}")
        except FileNotFoundError:
            skipped.append(f"{path.name}: there is no {path.stem}.txt, and metadata.jsonl does not list it")
        except (OSError, ValueError) as error:
            skipped.append(f"{path.name}: {path.stem}.txt cannot be read: {error}")
    if len(samples) < FEWEST:
        more = f"; not usable: {'; '.join(skipped[:3])}" if skipped else ""
        raise KontextError(
            f"{folder} has {len(samples)} pictures with instructions, and calibration needs {FEWEST}: put NAME.txt "
            f"beside each NAME.png, or a metadata.jsonl with file_name and prompt{more}"
        )
    return Samples(folder.name, samples, skipped)


def listed_prompts(folder: Path) -> dict[str, str]:
    """File name → prompt from metadata.jsonl, if there is one: the layout of Hugging Face's image folders."""
    path = folder / "metadata.jsonl"
    if not path.exists():
        return {}
    prompts: dict[str, str] = {}
    number = 0
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):  # noqa: B007  (the message below has it)
            if line.strip():
                entry = json.loads(line)
                prompts[str(entry["file_name"])] = str(entry.get("prompt") or entry["text"])
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KontextError(
            f"{path}, line {number}: expected an object with file_name and prompt (or text)"
        ) from None
    return prompts


def scenes(count: int = SCENES) -> Samples:
    """Edits of the tiny world that the embedded model was trained for, of every kind, none of them held out."""
    import numpy as np

    from ...tiny.edits import KINDS, sample_edit
    from ...tiny.scenes import render

    rng = np.random.default_rng(0)
    edits = [sample_edit(rng, split="train", kind=KINDS[index % len(KINDS)]) for index in range(count)]
    pictures = [None if edit.source is None else Image.fromarray(render(edit.source)) for edit in edits]
    return Samples(
        "scenes", [Sample(edit.prompt, picture) for edit, picture in zip(edits, pictures, strict=True)]
    )
