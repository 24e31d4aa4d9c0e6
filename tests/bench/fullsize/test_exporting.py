"""The full-size benchmark, on sizes that a test can afford: the same code, every step of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench.fullsize import exporting, synthetic
from kontext.errors import KontextError
from kontext.model.checkpoint import Checkpoint
from kontext.model.config import ClipConfig, KontextConfig, T5Config, TransformerConfig
from kontext.tiny.architecture import TINY

SMALL = KontextConfig(
    "FLUX.1-Kontext-synthetic",
    TransformerConfig(hidden_size=128, num_heads=2, num_double_blocks=2, num_single_blocks=2, axes_dim=(8, 28, 28),
                      text_dim=64, pooled_dim=64),
    dataclasses.replace(TINY.autoencoder, block_channels=(8, 8)),
    ClipConfig(768, 64, 128, num_layers=1, num_heads=1),
    T5Config(512, 64, 32, 128, num_layers=1, num_heads=2, max_length=32),
)  # fmt: skip


def test_the_real_shapes() -> None:
    assert synthetic.size_of(KontextConfig()) == 2 * (
        11_901_408_320 + 4_762_310_656 + 123_060_480 + 83_819_683
    )


def test_a_synthetic_checkpoint_is_whole_and_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SHARD_BYTES", 500_000)
    monkeypatch.setattr(synthetic, "TILE", 1 << 12)
    written: list[int] = []
    for name in ("first", "second"):
        synthetic.write(tmp_path / name, SMALL, written.append)
    assert sum(written) == 2 * synthetic.size_of(SMALL)
    assert len(list((tmp_path / "first/transformer").glob("*-of-*.safetensors"))) > 2
    checkpoint = Checkpoint.open(tmp_path / "first")
    assert checkpoint.config.transformer == SMALL.transformer
    for path in (tmp_path / "first").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()
    weight = checkpoint.networks["transformer"].read("double_blocks.1.img_mlp.2.weight").float()
    assert 0.5 < float(weight.std()) * 512**0.5 < 2  # one over the root of its inputs, to a power of two


def test_a_full_disk_is_foreseen(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=r"GB free, and this needs .*--blocks"):
        synthetic.check_room(tmp_path, 1 << 60)


def test_export_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SPARE_BYTES", 0)
    result = exporting.measure(tmp_path, SMALL, ["fp8"], progress=False)
    entry = result["exports"]["fp8"]
    assert entry["peak_bytes"] > 100e6
    assert entry["check"]["graphs"] == 6
    assert entry["load"]["seconds"].keys() == {"modulation", "transformer"}
    assert 0 < entry["blocks"]["relative_error"] < 5e-3
    assert not any(tmp_path.iterdir())
    (table,) = exporting.tables(result)
    assert "failed" not in table.text()
    assert "fp8" in table.text()


@pytest.mark.parametrize("words", [["--blocks", "19"], ["--blocks", "0,3"], ["--exports", "int3"]])
def test_bad_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exporting.main(words) == 2
    assert capsys.readouterr().err.startswith("error: --")
