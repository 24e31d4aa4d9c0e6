"""A random checkpoint in diffusers' layout and its fp32 bundle, made once for a whole test run and all its
workers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

if shutil.which("nvidia-smi") is None:
    # Triton reads this when a kernel is defined: without a GPU, tests run kernels in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

CORPUS = [
    "make the red circle blue and remove the small green square",
    "replace the letter A with the word KONTEXT, please: it's 42 pixels wide!",
    "turn the day into night; keep the character in its place",
    "add a yellow star above the house, don't move anything else",
    "draw the same character in the style of the reference, at 3 o'clock",
]


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by the first test process that needs it; the others wait for it."""
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(shared_folder: Path) -> Path:
    """A diffusers folder with random fp32 weights and tokenizers: 128 px, 1 double and 2 single blocks, T5 of
    24 tokens."""
    pytest.importorskip("torch")
    return once(shared_folder / "checkpoint", make_checkpoint)


@pytest.fixture(scope="session")
def tiny_bundle(shared_folder: Path, tiny_checkpoint: Path) -> Path:
    """The fp32 export of `tiny_checkpoint`. Do not change it: copy it."""

    def make(folder: Path) -> None:
        from kontext.export.cli.main import main

        assert main([str(tiny_checkpoint), "-o", str(folder), "--fp32", "--quiet"]) == 0

    return once(shared_folder / "bundle-fp32", make)


@pytest.fixture(scope="session")
def untraced() -> Callable[[Path], AbstractContextManager[None]]:
    """A context in which exports take a bundle's own graphs, taken apart, for what tracing would give in 20 s."""

    @contextlib.contextmanager
    def context(bundle: Path) -> Iterator[None]:
        from kontext.export.graph.workers import Tracers, unpack_graph

        computes = json.loads((bundle / "manifest.json").read_text())["precision"]["networks"]

        class Untraced(Tracers):
            def __init__(self, _networks: object, _config: object, compute: Mapping[str, str]) -> None:
                self.compute = compute

            def __enter__(self) -> Tracers:
                return self

            def __exit__(self, *fault: object) -> None:
                pass

            def result(self, network: str) -> object:
                assert self.compute[network] == computes[network]
                return unpack_graph((bundle / f"{network}.onnx").read_bytes())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kontext.export.exporter.Tracers", Untraced)
            yield

    return context


@pytest.fixture(scope="session")
def slots_bundle(
    shared_folder: Path,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
) -> Path:
    """The fp32 export of `tiny_checkpoint` with slots for LoRAs of rank 64. Do not change it: copy it."""

    def make(folder: Path) -> None:
        from kontext.export.cli.main import main

        with untraced(tiny_bundle):
            words = [tiny_checkpoint, "-o", folder, "--fp32", "--lora-slots", 64, "--quiet"]
            assert main([str(word) for word in words]) == 0

    return once(shared_folder / "bundle-slots", make)


@pytest.fixture(scope="session")
def embedded(shared_folder: Path) -> dict[str, Path]:
    """The embedded model in three formats. Do not change them: copy them."""
    pytest.importorskip("torch")
    from kontext.export.cli.main import main
    from kontext.export.cli.source_flags import EMBEDDED

    if not (EMBEDDED / "model_index.json").exists():
        pytest.skip("the embedded model is not part of this checkout")

    def make(folder: Path) -> None:
        unfinished = folder.with_name(folder.name + ".unfinished")
        unfinished.mkdir(exist_ok=True)
        for name in ("fp32", "fp8", "int4"):
            assert main([str(EMBEDDED), "-o", str(unfinished / name), f"--{name}", "--quiet"]) == 0
        unfinished.rename(folder)

    folder = once(shared_folder / "embedded", make)
    return {name: folder / name for name in ("fp32", "fp8", "int4")}


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared_folder: Path) -> None:
    """Nothing that the user's own exports have kept is used, and nothing is left there; nor are the user's defaults."""
    os.environ["XDG_CACHE_HOME"] = str(shared_folder / "cache")
    os.environ["XDG_STATE_HOME"] = str(shared_folder / "state")
    os.environ["XDG_CONFIG_HOME"] = str(shared_folder / "config")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run beside each other: with more threads than cores, PyTorch's wait for each other (115 s instead
    of 13)."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


def make_checkpoint(folder: Path) -> None:
    import torch

    from kontext.model.build_network import build_network
    from kontext.model.config import AutoencoderConfig, ClipConfig, KontextConfig, T5Config, TransformerConfig
    from kontext.model.diffusers_folder import save_diffusers
    from kontext.model.networks import NETWORKS
    from kontext.tiny.vocabulary import train_clip, train_t5

    config = KontextConfig(
        name="kontext-random",
        transformer=TransformerConfig(
            hidden_size=64,
            num_heads=2,
            num_double_blocks=1,
            num_single_blocks=2,
            axes_dim=(8, 12, 12),
            text_dim=48,
            pooled_dim=32,
        ),
        autoencoder=AutoencoderConfig((8, 8, 16, 16), layers_per_block=1, norm_groups=4, sample_size=128),
        text_encoder=ClipConfig(600, 32, 64, num_layers=2, num_heads=2),
        text_encoder_2=T5Config(160, 48, 12, 64, num_layers=2, num_heads=4, max_length=24),
    )
    generator = torch.Generator().manual_seed(20261123)
    weights = {}
    for name in NETWORKS:
        state = build_network(name, config).state_dict()
        for key, tensor in state.items():
            if tensor.ndim > 1:  # outputs of order 1, whatever the depth
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
            elif key.endswith("bias"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        weights[name] = state
    unfinished = folder.with_name(folder.name + ".unfinished")
    save_diffusers(unfinished, config, weights)
    train_clip(
        CORPUS, config.text_encoder.vocab_size, config.text_encoder.max_length, unfinished / "tokenizer"
    )
    train_t5(CORPUS, 150, config.text_encoder_2.max_length, unfinished / "tokenizer_2")
    unfinished.rename(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that keeps its console's messages."""
    webdriver = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium is not there: Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument("--window-size=1280,900")
    options.add_argument("--force-color-profile=srgb")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=service.Service(driver))
    yield running
    running.quit()
