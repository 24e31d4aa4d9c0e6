"""A step of stable-diffusion.cpp on a CPU, on a benchmark's weights, by its own Python bindings.

The library samples whole pictures. It runs in a thread that waits after every step, so that steps can take turns with
other sides'. It gives no velocity out, and its encoders have fixed sizes: those are written here with random weights
(CLIP-L, the tiny autoencoder TAEF1; no T5, in whose place it puts zeros).
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import queue
import threading
from pathlib import Path
from typing import Any

import PIL.Image

from ...errors import KontextError
from ...model.config import KontextConfig
from ..machine import usable_cores

LIBRARY = "stable-diffusion-cpp-python"
MODULE = "stable_diffusion_cpp"
SIDE = "stable-diffusion.cpp "
"""In front of a format in a side's name."""

FORMATS = ("f32", "bf16", "q8_0", "q4_0", "q4_k")
"""Of weights; the library converts those of the checkpoint when it loads them."""

TEXT_TOKENS = 256
"""Of its prompts without T5."""

TEXT_DIM, POOLED_DIM, CLIP_HEADS = 4096, 768, 12
"""Of T5-XXL and CLIP-L, which it takes for granted."""

PIXELS = 16
"""Side of an image token."""

TRANSFORMER, CLIP, AUTOENCODER = "flux.safetensors", "clip_l.safetensors", "taef1.safetensors"


def fitted(config: KontextConfig) -> KontextConfig:
    """`config` with inputs of the transformer as wide as the library takes for granted."""
    return dataclasses.replace(
        config,
        transformer=dataclasses.replace(config.transformer, text_dim=TEXT_DIM, pooled_dim=POOLED_DIM),
        text_encoder=dataclasses.replace(
            config.text_encoder, hidden_size=POOLED_DIM, num_heads=CLIP_HEADS, intermediate_size=POOLED_DIM
        ),
        text_encoder_2=dataclasses.replace(config.text_encoder_2, hidden_size=TEXT_DIM),
    )


def write_files(checkpoint: Path, config: KontextConfig, folder: Path) -> None:
    """The transformer of a diffusers folder under Black Forest Labs' names, which alone the library recognizes, and
    encoders of random weights."""
    import torch
    from diffusers import AutoencoderTiny
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from ...model.layouts import network_sources

    stored: dict[str, torch.Tensor] = {}
    for shard in (checkpoint / "transformer").glob("*.safetensors"):
        stored |= load_file(shard)
    native = {
        name: source.assemble(stored.__getitem__)
        for network in ("transformer", "modulation")
        for name, source in network_sources(network, config).items()
    }
    folder.mkdir()
    save_file(native, folder / TRANSFORMER)
    torch.manual_seed(0)
    sizes: Any = {"intermediate_size": 4 * POOLED_DIM, "num_attention_heads": CLIP_HEADS}
    clip = CLIPTextModel(CLIPTextConfig(hidden_size=POOLED_DIM, **sizes))
    autoencoder: Any = AutoencoderTiny(latent_channels=16)
    named = {
        f"text_model.{name.removeprefix('text_model.')}": each for name, each in clip.state_dict().items()
    }
    for file, state in ((CLIP, named), (AUTOENCODER, autoencoder.state_dict())):
        save_file({name: each.half().contiguous() for name, each in state.items()}, folder / file)


class Sampling:
    """A picture being sampled in a thread; each call makes one step.

    Args:
        folder: what `write_files` wrote.
        weights: one of `FORMATS`.
        grid: (rows, columns) of image tokens, of the target and of the reference.
        steps: that can be made. The thread then waits for more until the process ends, and never decodes.

    Raises:
        KontextError: the library failed; a step may raise it too.
    """

    def __init__(self, folder: Path, weights: str, grid: tuple[int, int], steps: int) -> None:
        self.folder, self.weights, self.grid, self.steps = folder, weights, grid, steps
        self.go = threading.Semaphore(0)
        self.done: queue.Queue[Exception | None] = queue.Queue()
        self.loaded = False
        self.thread = threading.Thread(target=self.sample, daemon=True)
        SAMPLINGS[self.thread] = self
        self.thread.start()
        self.wait()  # for the encoders

    def __call__(self) -> None:
        self.go.release()
        self.wait()

    def sample(self) -> None:
        rows, columns = self.grid
        size = {"width": columns * PIXELS, "height": rows * PIXELS}
        try:
            library = importlib.import_module(MODULE)
            model = library.StableDiffusion(
                diffusion_model_path=str(self.folder / TRANSFORMER),
                clip_l_path=str(self.folder / CLIP),
                taesd_path=str(self.folder / AUTOENCODER),
                wtype=self.weights,
                n_threads=usable_cores(),
                diffusion_flash_attn=True,
                verbose=False,
            )
            # Its own way to be silent sends this process's stdout to nowhere until the picture is made.
            model.verbose = True
            self.loaded = True
            logging.getLogger(LIBRARY).setLevel(logging.CRITICAL)
            model.generate_image(
                prompt="make it blue",
                ref_images=[PIL.Image.new("RGB", (size["width"], size["height"]), "red")],
                sample_steps=self.steps + 1,
                sample_method="euler",
                cfg_scale=1.0,
                progress_callback=stepped,
                **size,
            )
        except Exception as fault:  # of the library's own types; whoever waits gets it
            self.done.put(fault)

    def wait(self) -> None:
        fault = self.done.get()
        if fault is not None:
            raise KontextError(f"{LIBRARY} failed: {fault}") from fault


SAMPLINGS: dict[threading.Thread, Sampling] = {}


def stepped(*_progress: Any) -> None:
    """The library calls this before the first step and after every one, in the thread that samples; while it loads a
    model, too. It has one callback for all pictures: the latest that was given."""
    sampling = SAMPLINGS[threading.current_thread()]
    if sampling.loaded:
        sampling.done.put(None)
        sampling.go.acquire()
