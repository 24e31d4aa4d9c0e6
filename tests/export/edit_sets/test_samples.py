"""Subsets of a set of edits, and what of it can be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kontext.export.edit_sets.samples import Sample, Samples, shares


def of_categories(sizes: dict[str, int]) -> Samples:
    names = [name for name, size in sizes.items() for _ in range(size)]
    return Samples("x", [Sample(f"p{i}", None, str(i), name) for i, name in enumerate(names)])


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 400), min_size=1), st.data())
def test_shares_are_whole_in_proportion_and_leave_none_out(
    sizes: dict[str, int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, sum(sizes.values()) - 1))
    taken = shares(sizes, count)
    assert sum(taken.values()) == count
    assert all(0 <= taken[name] <= size for name, size in sizes.items())
    if count >= len(sizes):
        assert min(taken.values()) >= 1
    if all(count * size >= sum(sizes.values()) for size in sizes.values()):  # nobody needs the one at least
        assert all(abs(taken[name] - count * size / sum(sizes.values())) < 1 for name, size in sizes.items())


def test_kontextbench_s_own_categories() -> None:
    sizes = {"local": 416, "global": 262, "text": 92, "style": 63, "character": 193}
    samples = of_categories(sizes)
    taken = samples.subset(100, seed=3)
    counts = Counter(sample.category for sample in taken.samples)
    assert counts == {"local": 41, "global": 25, "text": 9, "style": 6, "character": 19}
    keys = [int(sample.key) for sample in taken.samples]
    assert keys == sorted(keys)
    assert samples.subset(100, seed=3).samples == taken.samples
    assert samples.subset(100, seed=4).samples != taken.samples
    assert samples.subset(2000, seed=0) is samples
    assert len(samples.subset(3, seed=0).samples) == 3


def test_pictures_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    paths = [tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "gone.png", None]
    checked = Samples("x", [Sample("p", path, str(path)) for path in paths], ["line 9: empty"]).checked()
    assert [sample.source for sample in checked.samples] == [paths[0], None]
    assert [line.partition(": ")[0] for line in checked.skipped] == ["line 9", *map(str, paths[1:3])]


def test_damaged_samples_are_replaced_by_others_of_their_category(tmp_path: Path) -> None:
    """2 of 4 of "a" are damaged, all of "b": "a" keeps its share, and what "b" lacks comes from the others."""
    (tmp_path / "bad.png").write_text("no picture")
    good = Image.new("RGB", (8, 8))
    bad = {"a0", "a1", "b0"}
    keys = ["a0", "a1", "a2", "a3", "b0", "c0", "c1", "c2", "c3"]
    samples = Samples("x", [Sample("p", tmp_path / "bad.png" if k in bad else good, k, k[0]) for k in keys])
    for seed in range(20):
        found = samples.usable(5, seed)
        assert found == samples.usable(5, seed)
        drawn = [sample.key for sample in found.samples]
        assert len(drawn) == 5
        assert drawn == sorted(set(drawn) - bad)
        assert Counter(key[0] for key in drawn) == {"a": 2, "c": 3}
        assert {line[:2] for line in found.skipped} <= bad
        whole = samples.usable(50, seed)
        assert [sample.key for sample in whole.samples] == ["a2", "a3", "c0", "c1", "c2", "c3"]
        assert len(samples.usable(1, seed).samples) == 1
    sound = of_categories({"a": 5, "b": 9})
    assert sound.usable(4, 1).samples == sound.subset(4, 1).samples


@pytest.mark.parametrize("changed", ["prompt", "pixels", "file"])
def test_digests_are_of_prompts_and_pictures(tmp_path: Path, changed: str) -> None:
    Image.new("RGB", (8, 8)).save(path := tmp_path / "a.png")
    image = Image.new("RGB", (4, 4))
    samples = Samples("x", [Sample("p", path), Sample("q", image), Sample("r", None)])
    before = samples.digest()
    assert samples.digest() == before
    if changed == "prompt":
        samples = Samples("x", [Sample("s", path), *samples.samples[1:]])
    elif changed == "pixels":
        image.putpixel((0, 0), (1, 0, 0))
    else:
        Image.new("RGB", (8, 8), "red").save(path)
    assert samples.digest() != before
