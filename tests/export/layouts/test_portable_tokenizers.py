"""Tokenizers for transformers 4 and 5: the ids that MODEL's own give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.layouts.portable_tokenizers import CLASSES, portable_tokenizers  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin  # noqa: E402

PROMPT = "make the red circle blue, 42 pixels wide!"


def test_they_give_the_models_ids(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, make in portable_tokenizers(Checkpoint.open(tiny_checkpoint)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(make())
    for folder, limit in (("tokenizer", 77), ("tokenizer_2", 24)):
        ours = getattr(transformers, CLASSES[folder]).from_pretrained(tmp_path / folder)
        theirs = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint / folder)
        assert ours.model_max_length == limit
        options = {"padding": "max_length", "max_length": limit, "truncation": True}
        assert ours(PROMPT, **options).input_ids == theirs(PROMPT, **options).input_ids


def test_the_prompts_length_is_the_commands(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(Origin(tiny_checkpoint, max_sequence_length=48))
    settings = json.loads(portable_tokenizers(checkpoint)["tokenizer_2/tokenizer_config.json"]())
    assert settings["model_max_length"] == 48


def test_a_missing_tokenizer_is_found_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer_2")
    with pytest.raises(KontextError, match=r"tokenizer_2 has neither tokenizer\.json nor spiece\.model"):
        portable_tokenizers(Checkpoint.open(tmp_path / "model"))
