"""The edits that a model is calibrated on: a user's folder of pictures and instructions, or scenes of the tiny world
for the embedded model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import KontextError
from ...model.config import KontextConfig
from ...regular_files import read_regular
from ...runtime.images import open_picture
from ...runtime.request import Request, build_request
from ...runtime.sampler_entry import SamplerEntry
from ...tiny.edits import KINDS, sample_edit
from ...tiny.scenes import render

MIN_SAMPLES = 4
"""Fewer samples would calibrate to single pictures."""

SCENES = 16
"""Samples of the built-in set; each takes a second on two cores."""

BATCH_PIXELS = 1 << 18
"""Pixels that are sampled together: sixteen of the embedded model's pictures, one of FLUX's."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


MAX_TEXT_BYTES = 32 << 20
"""Of a list of instructions, and of one."""


@dataclass(frozen=True)
class Sample:
    """An edit: its instruction and its reference, in memory or as a file; None for text-to-image."""

    prompt: str
    source: Image.Image | Path | None

    def picture(self) -> Image.Image | None:
        """The reference. A file is read again each time, so that a folder of photographs need not fit into memory."""
        return open_picture(self.source) if isinstance(self.source, Path) else self.source


@dataclass(frozen=True)
class Samples:
    """`skipped` has a line for every unusable picture: its name and the reason."""

    name: str
    samples: Sequence[Sample]
    skipped: Sequence[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of prompts and pictures: samples of the same digest give the same statistics."""
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
        KontextError: there are fewer than `MIN_SAMPLES` usable pairs.
    """
    if not folder.is_dir():
        raise KontextError(f"{folder} is not a folder of pictures and instructions")
    prompts = listed_prompts(folder)
    samples, skipped = [], []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        prompt = prompts.get(path.name)
        try:
            if prompt is None:
                prompt = (
                    read_regular(path.with_suffix(".txt"), MAX_TEXT_BYTES, "an instruction").decode().strip()
                )
            if not prompt:
                skipped.append(f"{path.name}: its instruction is empty")
                continue
            open_picture(path)  # finds unusable pictures before hours of calibration
            samples.append(Sample(prompt, path))
        except KontextError as error:
            skipped.append(f"{path.name}: {error}")
        except FileNotFoundError:
            skipped.append(f"{path.name}: no {path.stem}.txt, and not listed in metadata.jsonl")
        except (OSError, ValueError) as error:
            skipped.append(f"{path.name}: {path.stem}.txt cannot be read: {error}")
    if len(samples) < MIN_SAMPLES:
        more = f"; unusable: {'; '.join(skipped[:3])}" if skipped else ""
        raise KontextError(
            f"{folder} has {len(samples)} pictures with instructions, calibration needs {MIN_SAMPLES}: add NAME.txt "
            f"for each NAME.png, or a metadata.jsonl with file_name and prompt{more}"
        )
    return Samples(folder.name, samples, skipped)


def listed_prompts(folder: Path) -> dict[str, str]:
    """File name → prompt, from metadata.jsonl if it exists, as in Hugging Face's image folders."""
    path = folder / "metadata.jsonl"
    if not path.exists():
        return {}
    prompts: dict[str, str] = {}
    number = 0
    try:
        text = read_regular(path, MAX_TEXT_BYTES, "a list of instructions")
        for number, line in enumerate(text.decode().splitlines(), 1):  # noqa: B007  (the message below has it)
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


def scene_samples(count: int = SCENES) -> Samples:
    """Edits of the tiny world, as the embedded model was trained on: of every kind, none of them held out."""
    rng = np.random.default_rng(0)
    edits = [sample_edit(rng, split="train", kind=KINDS[index % len(KINDS)]) for index in range(count)]
    pictures = [None if edit.source is None else Image.fromarray(render(edit.source)) for edit in edits]
    return Samples(
        "scenes", [Sample(edit.prompt, picture) for edit, picture in zip(edits, pictures, strict=True)]
    )


def batch_size(config: KontextConfig) -> int:
    """Samples of a model's preferred size to run at once."""
    return max(1, BATCH_PIXELS // config.autoencoder.sample_size**2)


def sample_requests(
    samples: Samples, settings: SamplerEntry, batch: int, count: int | None = None
) -> Iterator[Request]:
    """Requests for the first `count` samples (None: all), at most `batch` at a time; their seeds are 0, 1, …"""
    chosen = samples.samples[:count]
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        yield build_request(
            settings,
            [sample.picture() for sample in part],
            [sample.prompt for sample in part],
            seed=start,
        )
