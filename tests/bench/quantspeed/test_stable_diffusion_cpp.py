"""Steps of stable-diffusion.cpp in turn: on a stand-in with its one callback, and for real where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kontext.bench.quantspeed import benchmark
from kontext.bench.quantspeed import stable_diffusion_cpp as library
from kontext.errors import KontextError

CALLS: list[str] = []


class Model:
    """As the library: one callback for all, called while a model loads and around every step."""

    callback: Callable[..., None] | None = None

    def __init__(self, *, wtype: str, **_settings: Any) -> None:
        self.wtype = wtype
        if Model.callback is not None:
            Model.callback(1, 100, 0.0)

    def generate_image(self, *, sample_steps: int, progress_callback: Callable[..., None], **_: Any) -> None:
        if self.wtype == "f32":
            raise ValueError("no memory")
        Model.callback = progress_callback
        progress_callback(0, sample_steps, 0.0)
        for step in range(sample_steps):
            CALLS.append(f"{self.wtype} {step}")
            progress_callback(step + 1, sample_steps, 0.0)


def test_pictures_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library.MODULE, SimpleNamespace(StableDiffusion=Model))  # type: ignore[arg-type]
    steps = [library.Sampling(tmp_path, weights, (4, 4), 2) for weights in ("q8_0", "q4_0")]
    for _ in range(2):
        for step in steps:
            step()
    assert CALLS == ["q8_0 0", "q4_0 0", "q8_0 1", "q4_0 1"]
    with pytest.raises(KontextError, match="stable-diffusion-cpp-python failed: no memory"):
        library.Sampling(tmp_path, "f32", (4, 4), 2)


def test_sizes_are_those_that_the_library_takes_for_granted() -> None:
    config = library.fitted(benchmark.config_of(512))
    assert (config.transformer.text_dim, config.text_encoder_2.hidden_size) == (4096, 4096)
    assert (config.transformer.pooled_dim, config.text_encoder.hidden_size) == (768, 768)


def test_the_library_samples_our_weights(tmp_path: Path) -> None:
    if importlib.util.find_spec(library.MODULE) is None:
        pytest.skip(f"{library.LIBRARY} is not installed: it is built from source for ten minutes")
    from kontext.bench.fullsize.synthetic import write_checkpoint

    config = library.fitted(benchmark.config_of(512, (1, 1)))
    write_checkpoint(tmp_path / "checkpoint", config, lambda _: None)
    library.write_files(tmp_path / "checkpoint", config, tmp_path / "files")
    for _ in range(2):
        library.Sampling(tmp_path / "files", "q8_0", (4, 4), 2)()
