"""diffusers' FluxKontextPipeline, run on the same checkpoint and the same edit as a bundle."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import PIL.Image

from ..child_process import protect_libraries
from ..errors import KontextError
from ..installation import install_command
from .timing import StageTimer


def load_pipeline(checkpoint: Path, *, device: str, compute: str = "fp32") -> Any:
    """A FluxKontextPipeline over the diffusers folder `checkpoint` in "fp32" or "bf16". Downloads nothing.

    Raises:
        KontextError: diffusers is not installed, or `checkpoint` is not a diffusers folder.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import torch
        import transformers
        from diffusers import FluxKontextPipeline
        from diffusers.utils import logging
    except ImportError as error:
        raise KontextError(
            f"--against diffusers needs it installed: {install_command('export', 'bench')} ({error})"
        ) from error
    if not (checkpoint / "model_index.json").is_file():
        raise KontextError(f"{checkpoint} is not a diffusers folder: it has no model_index.json")
    for log in (logging, transformers.utils.logging):
        log.set_verbosity_error()
        log.disable_progress_bar()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = FluxKontextPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def edit(
    pipe: Any,
    image: PIL.Image.Image | None,
    prompt: str,
    *,
    steps: int,
    guidance: float,
    seed: int,
    size: tuple[int, int],
) -> PIL.Image.Image:
    """One edit at exactly `size` (width, height), multiples of 16; the reference keeps its own size.

    Without `max_area` and `_auto_resize` the pipeline would resize to a million pixels. The noise comes from a
    generator on the CPU, as in the runtime.
    """
    import torch

    width, height = size
    result = pipe(
        image=image,
        prompt=prompt,
        width=width,
        height=height,
        max_area=width * height,
        _auto_resize=False,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        max_sequence_length=pipe.tokenizer_2.model_max_length,
    )
    return result.images[0]


TENSORS = (
    *("hidden_states", "timestep", "guidance", "pooled_projections", "encoder_hidden_states"),
    *("txt_ids", "img_ids"),
)
"""The transformer's arguments that are tensors."""


def prepare_transformer(pipe: Any, *, compiler: str | None = None, torchao: str | None = None) -> None:
    """Quantizes the transformer by a configuration of torchao, and compiles it: "inductor" is torch.compile's compiler,
    "openvino" OpenVINO's."""
    if torchao is not None:
        from torchao import quantization

        quantization.quantize_(pipe.transformer, getattr(quantization, torchao)())
    if compiler == "openvino":
        run_in_openvino(pipe)
    elif compiler is not None:
        import torch

        protect_libraries()
        pipe.transformer.forward = torch.compile(pipe.transformer.forward, backend=compiler)


def run_in_openvino(pipe: Any) -> None:
    """Converts the transformer by OpenVINO's own PyTorch frontend when it first runs, as Optimum Intel does, and runs
    it there in fp32. (OpenVINO's backend for torch.compile fails with PyTorch 2.13: it loses the shapes' symbols.)"""
    import openvino
    import torch

    network = pipe.transformer
    compiled: list[Any] = []
    original = network.forward
    names = [name for name in inspect.signature(original).parameters if name in TENSORS]

    class Called(torch.nn.Module):
        """Takes the tensors by position and returns the velocity alone."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: Any) -> Any:
            return original(**dict(zip(names, tensors, strict=True)), return_dict=False)[0]

    def forward(**given: Any) -> tuple[Any]:
        tensors = [given[name] for name in names]
        if not compiled:
            converted = openvino.convert_model(Called(), example_input=tuple(tensors))
            hints = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled.append(openvino.Core().compile_model(converted, "CPU", hints))
        return (torch.from_numpy(compiled[0]([tensor.numpy() for tensor in tensors])[0]),)

    network.forward = forward


def attach_timer(pipe: Any, timer: StageTimer) -> None:
    """Times the pipeline's networks under the names of the runtime's stages; modulation is part of every step."""
    for stage, module in (
        ("text_encoder", pipe.text_encoder),
        ("text_encoder_2", pipe.text_encoder_2),
        ("vae_encoder", pipe.vae.encoder),
        ("step", pipe.transformer),
        ("vae_decoder", pipe.vae.decoder),
    ):
        module.forward = timer.wrap(stage, module.forward)
