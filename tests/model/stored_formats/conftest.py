"""A safetensors file of one quantized module."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from kontext.model.weight_files import open_weight_file  # noqa: E402


def note(value: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Any]:
    """Saves the tensors of a module "m", and returns its weight as it is read."""

    def store(
        tensors: Mapping[str, torch.Tensor], format: object = None, metadata: Mapping[str, str] | None = None
    ) -> Any:
        named = {f"m.{name}": tensor.contiguous() for name, tensor in tensors.items()}
        if format is not None:
            named["m.comfy_quant"] = note(format if isinstance(format, dict) else {"format": format})
        save_file(named, tmp_path / "a.safetensors", metadata=dict(metadata or {}))
        opened = open_weight_file(tmp_path / "a.safetensors").tensors
        assert set(opened) == {"m.weight"}
        return opened["m.weight"]

    return store
