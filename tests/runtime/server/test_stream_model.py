"""The model, with a stand-in for the server's Python module."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.runtime.bundle import Bundle


@pytest.fixture
def stream_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    stand_in = ModuleType("triton_python_backend_utils")
    stand_in.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1  # type: ignore[attr-defined]
    stand_in.Logger = SimpleNamespace(log_error=lambda _: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
    monkeypatch.delitem(sys.modules, "kontext.runtime.server.stream_model", raising=False)
    yield importlib.import_module("kontext.runtime.server.stream_model")
    sys.modules.pop("kontext.runtime.server.stream_model")


def test_graphs_in_the_server_are_the_bundle_s(stream_model: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    """They are copies beside the bundle, which the server's own backend loads."""
    bundle = Bundle.open(tiny_bundle)
    for name, entry in bundle.graphs.items():
        version = tmp_path / f"kontext_{name}" / "1"
        (version / "weights").mkdir(parents=True)
        shutil.copy(entry.path, version / "model.onnx")
        shutil.copy(entry.weights, version / "weights")
    stream_model.check_models(bundle, tmp_path, weights=True)
    for file in ("weights/vae_decoder.safetensors", "model.onnx"):
        path = tmp_path / "kontext_vae_decoder" / "1" / file
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(KontextError, match=rf"{path} is not .*: write the repository again"):
            stream_model.check_models(bundle, tmp_path, weights=True)
        if file != "model.onnx":
            stream_model.check_models(bundle, tmp_path, weights=False)
    with pytest.raises(KontextError, match=r"is not .*vae_decoder\.onnx"):
        stream_model.check_models(bundle, tmp_path, weights=False)


@pytest.mark.parametrize(
    ("request_id", "logged"),
    [
        ("", "-"),
        ("unary-grpc:7/a.b@c", "unary-grpc:7/a.b@c"),
        ("x outcome=failed", '"x outcome=failed"'),
        ('"\n\x1b[2J', '"\\"\\n\\u001b[2J"'),
        ("é", '"\\u00e9"'),
        ("x" * 200, f'"{"x" * 100}"'),
    ],
)
def test_an_id_is_no_other_field_of_the_log(stream_model: Any, request_id: str, logged: str) -> None:
    assert stream_model.loggable(request_id) == logged
