"""Calibration sets from folders of pictures and instructions; unusable pictures are listed by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.export.calibration.samples import MIN_SAMPLES, MOST_SAMPLES, apart, read_samples, scene_samples
from kontext.export.edit_sets.samples import Sample, Samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(MIN_SAMPLES):
        Image.new("RGB", (32 + index, 24), (index, 9, 9)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f" make it {index}\n")
    return tmp_path


def test_pairs_are_read_in_order(folder: Path) -> None:
    samples = read_samples(folder)
    assert [sample.prompt for sample in samples.samples] == [f"make it {i}" for i in range(MIN_SAMPLES)]
    pictures = [sample.picture() for sample in samples.samples]
    assert [picture.size for picture in pictures if picture] == [(32 + i, 24) for i in range(MIN_SAMPLES)]
    assert not samples.skipped


def test_metadata_names_prompts_too(folder: Path) -> None:
    for index in range(MIN_SAMPLES):
        (folder / f"{index}.txt").unlink()
    keys = ("prompt", "text")
    lines = [json.dumps({"file_name": f"{i}.png", keys[i % 2]: f"listed {i}"}) for i in range(MIN_SAMPLES)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    assert [sample.prompt for sample in read_samples(folder).samples] == [
        f"listed {i}" for i in range(MIN_SAMPLES)
    ]


def test_what_cannot_be_used_is_named(folder: Path) -> None:
    (folder / "alone.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("make it whole")
    (folder / "mute.jpg").write_bytes((folder / "0.png").read_bytes())
    (folder / "mute.txt").write_text("  \n")
    (folder / "strange.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "strange.txt").write_bytes(b"\xff\xfe\x00bad")
    samples = read_samples(folder)
    assert len(samples.samples) == MIN_SAMPLES
    assert [line.split(":")[0] for line in samples.skipped] == [
        "alone.png",
        "mute.jpg",
        "strange.png",
        "broken",
    ]
    assert "no alone.txt" in samples.skipped[0]


def test_too_few_are_refused_with_their_faults(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(KontextError, match=rf"{MIN_SAMPLES - 1}.*0\.png"):
        read_samples(folder)


def test_a_large_set_is_not_taken_whole(folder: Path) -> None:
    lines = [{"file_name": f"{i % 4}.png", "prompt": f"p{i}", "category": "ab"[i % 2]} for i in range(200)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    taken = read_samples(folder).samples
    assert len(taken) == MOST_SAMPLES
    assert [sample.category for sample in taken].count("a") == MOST_SAMPLES / 2
    assert read_samples(folder).samples == taken


def test_digests_are_of_prompts_and_pixels(folder: Path) -> None:
    first = read_samples(folder).digest()
    assert read_samples(folder).digest() == first
    (folder / "1.txt").write_text("make it different")
    second = read_samples(folder).digest()
    Image.new("RGB", (33, 24)).save(folder / "1.png")
    assert len({first, second, read_samples(folder).digest()}) == 3


def test_the_built_in_set_is_of_every_kind_and_always_the_same() -> None:
    samples = scene_samples()
    assert len(samples.samples) >= 9
    assert samples.digest() == scene_samples().digest()


def test_statistics_and_measurement_have_edits_of_their_own() -> None:
    """Of the built-in set there are more; of a user's, those measured on are left out of the statistics."""
    collected, measured = apart(scene_samples(), 8)
    assert collected.digest() == scene_samples().digest()
    assert len(measured.samples) == 8
    pictures = [np.asarray(each.picture()).tobytes() for each in (*collected.samples, *measured.samples)]
    assert len(set(pictures)) == len(pictures)
    own = Samples("mine", [Sample(str(index), None) for index in range(12)])
    collected, measured = apart(own, 8)
    assert [each.prompt for each in measured.samples] == [str(index) for index in range(8)]
    assert [each.prompt for each in collected.samples] == ["8", "9", "10", "11"]
    few = Samples("mine", own.samples[:11])
    assert apart(few, 8) == (few, few)
