"""Synthetic checkpoints: the real shapes, the same bytes every time, and no more than the disk has space for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench import cli
from kontext.bench.fullsize import synthetic
from kontext.errors import KontextError
from kontext.model.checkpoint import Checkpoint
from kontext.model.config import KontextConfig


def test_the_real_shapes() -> None:
    assert synthetic.checkpoint_bytes(KontextConfig()) == 2 * (
        11_901_408_320 + 4_762_310_656 + 123_060_480 + 83_819_683
    )


def test_a_synthetic_checkpoint_is_whole_and_the_same_again(
    tmp_path: Path, small_config: KontextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SHARD_BYTES", 500_000)
    monkeypatch.setattr(synthetic, "TILE", 1 << 12)
    written: list[int] = []
    for name in ("first", "second"):
        synthetic.write_checkpoint(tmp_path / name, small_config, written.append)
    assert sum(written) == 2 * synthetic.checkpoint_bytes(small_config)
    assert len(list((tmp_path / "first/transformer").glob("*-of-*.safetensors"))) > 2
    checkpoint = Checkpoint.open(tmp_path / "first")
    assert checkpoint.config.transformer == small_config.transformer
    for path in (tmp_path / "first").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()
    weight = checkpoint.networks["transformer"].read("double_blocks.1.img_mlp.2.weight").float()
    assert 0.5 < float(weight.std()) * 512**0.5 < 2  # one over the root of its inputs, to a power of two


def test_a_full_disk_is_foreseen(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=r"GB free and this needs .*a larger disk"):
        synthetic.check_disk_space(tmp_path, 1 << 60)


def test_a_hollow_checkpoint_is_whole_and_takes_no_disk_space(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    assert cli.main(["synthetic", str(folder), "--hollow"]) == 0
    assert sum(path.stat().st_blocks * 512 for path in folder.rglob("*.safetensors")) < 10e6
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert size == pytest.approx(synthetic.checkpoint_bytes(KontextConfig("flux")), rel=1e-3)
    assert cli.main(["synthetic", str(folder)]) == 2
