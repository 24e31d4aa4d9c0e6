"""A run that starts from a checkpoint's weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import load_state  # noqa: E402
from kontext.tiny import run_state, train  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402
from kontext.tiny.warm_start import NETWORK_PARTS, start_from  # noqa: E402

CHECKPOINT = Path(train.__file__).parent / "checkpoint"


def test_a_new_run_starts_from_the_checkpoints_weights_and_tokenizers(tmp_path: Path) -> None:
    assert start_from(CHECKPOINT, tmp_path, TINY) == ["autoencoder", "flow"]
    weights = load_state(CHECKPOINT)
    flow = run_state.load_average(tmp_path / "flow.safetensors")
    expected = {f"{part}.{key}": t for part in NETWORK_PARTS for key, t in weights[part].items()}
    assert flow.keys() == expected.keys()
    assert all(torch.equal(flow[key], expected[key].float()) for key in expected)
    for name in ("tokenizer", "tokenizer_2"):
        for file in (CHECKPOINT / name).iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()


def test_an_untrained_run_writes_the_checkpoint_that_it_started_from(tmp_path: Path) -> None:
    start_from(CHECKPOINT, tmp_path / "run", TINY)
    train.write_checkpoint(tmp_path / "run", tmp_path / "written")
    before, after = load_state(CHECKPOINT), load_state(tmp_path / "written")
    for part, tensors in before.items():
        assert all(torch.equal(after[part][key], tensor) for key, tensor in tensors.items())


def test_a_run_that_has_begun_keeps_its_own_state(tmp_path: Path) -> None:
    start_from(CHECKPOINT, tmp_path, TINY)
    state = (tmp_path / "flow.safetensors").read_bytes()
    (tmp_path / "autoencoder.safetensors").unlink()
    assert start_from(CHECKPOINT, tmp_path, TINY) == ["autoencoder"]
    assert (tmp_path / "flow.safetensors").read_bytes() == state


def test_a_checkpoint_of_other_sizes_or_none_is_refused(tmp_path: Path) -> None:
    wider = dataclasses.replace(TINY.transformer, hidden_size=256, num_heads=4)
    with pytest.raises(KontextError, match="other sizes than kontext-tiny"):
        start_from(CHECKPOINT, tmp_path / "run", dataclasses.replace(TINY, transformer=wider))
    with pytest.raises(KontextError, match="nothing does not exist"):
        start_from(tmp_path / "nothing", tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()
