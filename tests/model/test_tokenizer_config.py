"""Fields of tokenizer_config.json: known, refused, or warned of before anything is written."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.cli.main import main  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin  # noqa: E402
from kontext.model.tokenizer_config import check_tokenizer_config, prompt_tokens  # noqa: E402

PUBLISHED = [
    {
        "add_prefix_space": False,
        "added_tokens_decoder": {"49406": {"content": "<|startoftext|>", "special": True}},
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    },
    {
        "add_prefix_space": True,
        "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}},
        "additional_special_tokens": ["<extra_id_0>"],
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        "extra_ids": 100,
        "legacy": True,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    },
]
"""The fields of FLUX.1's two tokenizer_config.json."""


@pytest.mark.parametrize("fields", PUBLISHED)
def test_published_configurations_are_read_without_a_word(tmp_path: Path, fields: dict[str, object]) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(fields))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tokenizer_config(path)
    path.write_text(json.dumps(fields | {"dropout": 0.1}))
    with pytest.warns(UserWarning, match=r"tokenizer_config.json: unknown, and not used: dropout = 0.1"):
        check_tokenizer_config(path)


def test_what_the_installed_library_writes_is_known(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for folder in (tiny_checkpoint / "tokenizer", tiny_checkpoint / "tokenizer_2"):
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / folder.name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_tokenizer_config(tmp_path / folder.name / "tokenizer_config.json")


REFUSED = [
    ("padding_side", "left", "padding_side is 'left', expected 'right'"),
    ("truncation_side", "left", "truncation_side is 'left', expected 'right'"),
    ("split_special_tokens", True, "split_special_tokens is True, expected False"),
]


def edited(folder: Path, **fields: object) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


def ids(folder: Path, text: str) -> list[int]:
    """Of transformers' AutoTokenizer, padded and cut as FLUX's pipelines do."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(text, padding="max_length", max_length=9, truncation=True).input_ids


@pytest.mark.parametrize(("field", "value", "message"), REFUSED)
@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_settings_that_change_ids_are_refused_on_opening(
    name: str, field: str, value: object, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    edited(folder / name, **{field: value})
    message = f"{name}/tokenizer_config.json: {message}"
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(folder)
    transformer = folder / "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(KontextError, match=message):
        Checkpoint.open(Origin(transformer, base=folder))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"padding_side": "left"}, False),
        ({"add_bos_token": True, "add_eos_token": False}, True),
        ({"do_lower_case": False, "errors": "ignore"}, True),
        ({"add_prefix_space": True, "legacy": False}, True),
        ({"add_prefix_space": False, "legacy": True}, True),
    ],
)
def test_transformers_ids_change_with_what_is_refused_only(
    name: str, fields: dict[str, object], same: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint / name, tmp_path / name))
    path = edited(folder, **fields)
    assert (ids(folder, "Red") == ids(tiny_checkpoint / name, "Red")) == same
    if same:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_tokenizer_config(path)
    else:
        with pytest.raises(KontextError):
            check_tokenizer_config(path)


@pytest.mark.parametrize(
    "flags", [["-o", "OUT"], ["-o", "OUT", "--fit", "8GB", "--plan-only"], ["inspect"]], ids=lambda f: f[-1]
)
def test_every_command_refuses_and_warns(
    flags: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one line each, and before anything is written."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    edited(folder / "tokenizer", clean_up=1)
    edited(folder / "tokenizer_2", padding_side="left")
    words = [flag.replace("OUT", str(tmp_path / "out")) for flag in flags]
    words = [*words, str(folder)] if words == ["inspect"] else [str(folder), *words]
    assert main(words) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ")
    assert warning.endswith("tokenizer/tokenizer_config.json: unknown, and not used: clean_up = 1")
    assert error.startswith("error: ")
    assert error.endswith("tokenizer_2/tokenizer_config.json: padding_side is 'left', expected 'right'")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("limit", "tokens"), [(64, 64), (10**30, 512), (None, 512), (0, 512)])
def test_prompts_are_as_long_as_the_tokenizers_limit(tmp_path: Path, limit: object, tokens: int) -> None:
    path = tmp_path / "tokenizer_config.json"
    assert prompt_tokens(path, 512) == 512
    path.write_text(json.dumps({"model_max_length": limit}))
    assert prompt_tokens(path, 512) == tokens
