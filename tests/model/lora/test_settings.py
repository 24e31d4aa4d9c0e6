"""Settings beside the tensors: PEFT's adapter_config.json, and alpha that is only in the header.

Merges by these settings are held against PEFT in test_modules.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.model.lora.settings import FLAGS, PEFT_DEFAULT, FileSettings, Settings, read_settings

COMPONENTS = ("transformer", "text_encoder")
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
CONFIG = GOLDEN["PEFT LoRA"]["config"]
"""As PEFT 0.21.2 writes it: r 3, lora_alpha 6."""


def with_config(folder: Path, config: Any, file: str = "adapter_model.safetensors") -> FileSettings:
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / file).touch()
    return read_settings(folder / file, {}, COMPONENTS, False)


@pytest.mark.parametrize("name", [name for name in GOLDEN if "config" in GOLDEN[name]])
def test_peft_writes_no_setting_that_is_unknown(tmp_path: Path, name: str) -> None:
    found = with_config(tmp_path, GOLDEN[name]["config"])
    assert found.notes == ()
    assert found.components["text_encoder"].peft["peft_type"] in ("LORA", "LOHA", "LOKR")
    assert re.fullmatch("[0-9a-f]{64}", found.config_digest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "OFT"}, "is of PEFT's type OFT, which is not supported: adapter_config.json"),
        ({"peft_type": "VERA"}, "type VERA"),
        ({"init_lora_weights": "pissa"}, r"changed base weights .*'pissa'.*path_initial_model_for_weight"),
        ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"init_lora_weights": "loftq"}, "'loftq'"),
        ({"layer_replication": [[0, 4]]}, "repeats layers, which is not supported: layer_replication"),
        ({"alora_invocation_tokens": [3]}, "is an aLoRA"),
        ({"kasa_config": {"beta": 1}}, "is a KaSA"),
        ({"use_rslora": "yes"}, '^.*: use_rslora in adapter_config.json is "yes", expected true or false$'),
        ("{", "adapter_config.json is not JSON"),
        ("[]", "adapter_config.json is not a JSON object"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        with_config(tmp_path, CONFIG | changes if isinstance(changes, dict) else changes)


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({"init_lora_weights": "gaussian"}, ()),
        ({"init_lora_weights": "eva"}, ()),
        ({"init_lora_weights": False, "lora_dropout": 0.1}, ()),
        ({"fan_in_fan_out": True}, ("fan_in_fan_out in adapter_config.json has no effect on linears",)),
        ({"new_method": {"x": 1}, "other": None}, ("not read in adapter_config.json: new_method",)),
    ],
)
def test_settings_that_change_nothing(
    tmp_path: Path, changes: dict[str, Any], notes: tuple[str, ...]
) -> None:
    assert with_config(tmp_path, CONFIG | changes).notes == notes


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false(tmp_path: Path, name: str) -> None:
    """In both places. PEFT takes 1 and any text for true."""
    folder = tmp_path / "peft"
    folder.mkdir()
    for value in ("yes", "false", 1, 0, [], {}):
        with pytest.raises(KontextError, match=f"{name} in adapter_config.json is .*expected true or false"):
            with_config(folder, CONFIG | {name: value})
        metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value})}
        with pytest.raises(KontextError, match=f"{name} in its metadata is .*expected true or false"):
            read_settings(tmp_path / "a.safetensors", metadata, COMPONENTS, False)
    with_config(folder, CONFIG | {name: None})


def test_flags_and_defaults_are_pefts() -> None:
    """Oracle: the fields of PEFT's own configurations."""
    peft = pytest.importorskip("peft")
    for config, alpha in (
        (peft.LoraConfig, "lora_alpha"),
        (peft.LoHaConfig, "alpha"),
        (peft.LoKrConfig, "alpha"),
    ):
        fields = dataclasses.fields(config)
        # init_weights may be text in a LoKr, and only matters in training
        flags = {field.name for field in fields if field.type in (bool, "bool")} - {"init_weights"}
        assert flags <= {*FLAGS}
        assert (config().r, getattr(config(), alpha)) == (PEFT_DEFAULT, PEFT_DEFAULT)


@pytest.mark.parametrize(
    ("config", "rank", "alpha", "missing"),
    [
        ({}, 8, 8, "no r and no lora_alpha"),
        ({"r": 4}, 4, 8, "no lora_alpha"),
        ({"r": 4, "lora_alpha": 2}, 4, 2, None),
        ({"lora_alpha": 2}, 8, 2, "no r"),
        ({"peft_type": "LOHA", "r": 4, "lora_alpha": 2}, 4, 8, "no alpha"),
        ({"peft_type": "LOKR", "alpha": 2}, 8, 2, "no r"),
        ({"rank_pattern": {"x": 4}, "alpha_pattern": {"x": 2}}, 4, 2, None),
    ],
)
def test_what_is_missing_is_pefts_default(
    tmp_path: Path, config: dict[str, Any], rank: int, alpha: int, missing: str | None
) -> None:
    """PEFT 0.21.2 has 8 for r, lora_alpha and alpha (its own fields: above)."""
    settings = with_config(tmp_path, config).components["transformer"]
    assert settings.alpha("x", rank) == (alpha, rank)
    note = f"adapter_config.json has {missing}: PEFT's default of 8 was taken"
    assert settings.note("x", rank) == (note if missing else None)


def test_factors_of_another_rank_than_pefts_default(tmp_path: Path) -> None:
    settings = with_config(tmp_path, {"lora_alpha": 16}).components["transformer"]
    with pytest.raises(KontextError, match=r"have rank 4, but adapter_config\.json has no r, so that PEFT"):
        settings.alpha("x", 4)


def test_the_config_is_that_of_the_only_file_or_of_pefts(tmp_path: Path) -> None:
    found = with_config(tmp_path, CONFIG, "style.safetensors")
    assert found.components["transformer"].alpha("x", 3) == (6, 3)
    (tmp_path / "other.safetensors").touch()
    found = with_config(tmp_path, CONFIG, "style.safetensors")
    assert found.components["transformer"].alpha("x", 3) == (3, 3)
    assert found.notes == (
        "adapter_config.json in the same folder was not read: it is adapter_model.safetensors'",
    )
    assert with_config(tmp_path, CONFIG).components["transformer"].alpha("x", 3) == (6, 3)


def test_whole_weights_and_biases(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "", {"modules_to_save": ["norm_out", "x_embedder"], "bias": "lora_only"})
    assert settings.saves("norm_out.linear")
    assert settings.saves("transformer.x_embedder")
    assert not settings.saves("context_embedder")
    assert settings.saves_biases
    assert not Settings(tmp_path, "", {"bias": "none"}).saves_biases


APPLIED = "alpha 16 from the header: the factors of rank 4 are multiplied by 4"


@pytest.mark.parametrize(
    ("metadata", "scale", "note"),
    [
        ({"lora_alpha": "16"}, 4, APPLIED),
        ({"lora_alpha": "16", "r": "4"}, 4, APPLIED),
        ({"network_alpha": "16.0", "network_dim": "4"}, 4, APPLIED),
        ({"transformer.lora_alpha": "16", "transformer.r": "4", "lora_alpha": "2"}, 4, APPLIED),
        ({"lora_alpha": "16", "network_alpha": "16"}, 4, APPLIED),
        ({"r": "4"}, 1, None),
        ({"text_encoder.lora_alpha": "16"}, 1, None),
        ({"lora_alpha": "16", "r": "8"}, 1, "alpha 16 in the header is for rank 8 and was not applied to"),
        (
            {"lora_alpha": "16", "network_alpha": "8"},
            1,
            "ambiguous and was not applied: lora_alpha 16, network",
        ),
        ({"lora_alpha": "sixteen"}, 1, "was not applied: lora_alpha is 'sixteen', which is not a number"),
        ({"lora_alpha": "8", "rank": "four"}, 1, "was not applied: rank is 'four', which is not a number"),
        ({"ss_network_alpha": "16", "ss_network_dim": "4"}, 1, "ss_network_alpha 16 in the header was not"),
    ],
)
def test_alpha_in_the_header(
    tmp_path: Path, metadata: dict[str, str], scale: float, note: str | None
) -> None:
    found = read_settings(tmp_path / "a.safetensors", metadata, COMPONENTS, False)
    settings = found.components["transformer"]
    alpha, rank = settings.alpha("x_embedder", 4)
    assert alpha / rank == scale
    notes = [*found.notes, *filter(None, [settings.note("x_embedder", 4)])]
    assert len(notes) == (note is not None)
    assert all(note in each for each in notes if note)


def test_alpha_tensors_make_the_headers_alpha_void(tmp_path: Path) -> None:
    metadata = {"lora_alpha": "16", "ss_network_alpha": "16"}
    found = read_settings(tmp_path / "a.safetensors", metadata, COMPONENTS, True)
    assert found.notes == ()
    assert found.components["transformer"].alpha("x", 4) == (4, 4)


def test_the_components_of_diffusers_metadata(tmp_path: Path) -> None:
    settings = {"text_encoder.r": 4, "text_encoder.lora_alpha": 8}
    metadata = {"lora_adapter_metadata": json.dumps(settings), "lora_alpha": "16"}
    found = read_settings(tmp_path / "a.safetensors", metadata, COMPONENTS, False)
    assert found.components["text_encoder"].alpha("x", 4) == (8, 4)
    assert found.components["transformer"].alpha("x", 4) == (16, 4)
    settings = {"transformer.init_lora_weights": "pissa"}
    with pytest.raises(KontextError, match="init_lora_weights 'pissa' in its metadata"):
        read_settings(
            tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)}, COMPONENTS, False
        )
