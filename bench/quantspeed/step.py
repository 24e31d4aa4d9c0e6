"""One step of a transformer, ready to be timed: a bundle's in ONNX Runtime or OpenVINO, or diffusers' in bf16.

As a program (`python -m kontext.bench.quantspeed.step`) it runs two steps and records the memory of its process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...child_process import protect_libraries
from ..machine import usable_cores
from ..openvino_sides import OPENVINO
from . import stable_diffusion_cpp

if TYPE_CHECKING:
    from ...runtime import Pipeline
    from ...runtime.lora import Loras

Array = NDArray[np.float32]

SIDES = ("onnxruntime", *OPENVINO)
"""What runs a bundle."""

TIME, GUIDANCE = 0.5, 2.0
"""1000 times these are exact in bf16, so diffusers' casts of them change nothing."""


def grid(tokens: int) -> tuple[int, int]:
    """(rows, columns) of `tokens`, a power of two, as square as possible."""
    rows = 1 << ((tokens - 1).bit_length() // 2)
    return rows, tokens // rows


def step_inputs(tokens: int, channels: int, text: tuple[int, int], pooled: int) -> dict[str, Array]:
    """The same random inputs for both sides, [1, tokens, channels]; `text` is (tokens, channels)."""
    rng = np.random.default_rng(0)
    shapes = {
        "target": (1, tokens, channels),
        "reference": (1, tokens, channels),
        "text": (1, *text),
        "pooled": (1, pooled),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def bundle_step(folder: Path, tokens: int, side: str = "onnxruntime") -> Callable[[], Array]:
    """A step of a bundle's transformer in one of `SIDES`."""
    pipe = open_side(folder, side)
    return transformer_step(pipe, tokens, pipe.loras)


def open_side(folder: Path, side: str) -> Pipeline:
    """A bundle, to be run by one of `SIDES`."""
    from ...runtime import OpenVINOOptions, Pipeline

    backend = "onnxruntime" if side == "onnxruntime" else OpenVINOOptions(compute=OPENVINO[side])
    return Pipeline.load(folder, device="cpu", backend=backend, low_memory=False)


def transformer_step(pipe: Pipeline, tokens: int, loras: Loras) -> Callable[[], Array]:
    """A step of a pipeline's transformer with LoRAs."""
    given = transformer_inputs(pipe, tokens, loras)

    def step() -> Array:
        velocity: Array = pipe.backend.run("transformer", given)["velocity"]
        return velocity

    return step


def transformer_inputs(pipe: Pipeline, tokens: int, loras: Loras) -> dict[str, Array]:
    """The inputs of a step with LoRAs; modulation is computed before, once, as the sampler does."""
    from ...runtime.tokens import positions, rope_tables

    model, sizes = pipe.bundle.transformer, pipe.bundle.manifest["model"]
    text = (sizes["text_encoder_2"]["max_length"], model.text_dim)
    given = step_inputs(tokens, model.in_channels, text, model.pooled_dim)
    conditioning = {
        "timestep": np.array([TIME], np.float32),
        "guidance": np.array([GUIDANCE], np.float32),
        "pooled": given.pop("pooled"),
    }
    modulation = pipe.backend.run("modulation", {**conditioning, **loras.inputs.get("modulation", {})})
    pipe.backend.release("modulation")
    cos, sin = rope_tables(positions(text[0], [grid(tokens)] * 2), model.axes_dim, model.theta)
    return {
        **given,
        "rope_cos": cos,
        "rope_sin": sin,
        **modulation,
        **loras.inputs.get("transformer", {}),
    }


def diffusers_step(
    checkpoint: Path, tokens: int, *, compiled: bool = False, text_tokens: int | None = None
) -> Callable[[], Array]:
    """A step of diffusers' transformer in bf16, eager or `compiled` by torch.compile; modulation is part of every
    step. `text_tokens` are the tokenizer's limit, unless given."""
    import torch
    from diffusers import FluxTransformer2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(usable_cores())
    model = FluxTransformer2DModel.from_pretrained(
        checkpoint / "transformer", torch_dtype=torch.bfloat16, local_files_only=True
    ).eval()
    t5 = json.loads((checkpoint / "text_encoder_2" / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((checkpoint / "tokenizer_2" / "tokenizer_config.json").read_text(encoding="utf-8"))
    length = text_tokens or int(tokenizer["model_max_length"])
    given = step_inputs(
        tokens, model.config.in_channels, (length, t5["d_model"]), model.config.pooled_projection_dim
    )
    ids = [torch.zeros(length, 3), *(token_ids(index, grid(tokens)) for index in range(2))]
    half = {name: torch.from_numpy(array).bfloat16() for name, array in given.items()}
    arguments = {
        "hidden_states": torch.cat((half["target"], half["reference"]), dim=1),
        "encoder_hidden_states": half["text"],
        "pooled_projections": half["pooled"],
        "timestep": torch.tensor([TIME]),
        "guidance": torch.tensor([GUIDANCE]),
        "txt_ids": ids[0],
        "img_ids": torch.cat(ids[1:]),
        "return_dict": False,
    }

    if compiled:
        protect_libraries()
    call = torch.compile(model) if compiled else model

    def step() -> Array:
        with torch.inference_mode():
            velocity: Array = call(**arguments)[0][:, :tokens].float().numpy()
        return velocity

    return step


def make_step(
    side: str, folder: Path, tokens: int, text_tokens: int | None = None, steps: int = 2
) -> Callable[[], Array | None]:
    """A step of one of `SIDES`, "diffusers", "diffusers-compiled" or stable-diffusion.cpp with one of its formats,
    which can make `steps` and gives no velocity out."""
    if side in SIDES:
        return bundle_step(folder, tokens, side)
    if side.startswith(stable_diffusion_cpp.SIDE):
        weights = side.removeprefix(stable_diffusion_cpp.SIDE)
        return stable_diffusion_cpp.Sampling(folder, weights, grid(tokens), steps)
    return diffusers_step(folder, tokens, compiled=side == "diffusers-compiled", text_tokens=text_tokens)


def token_ids(index: int, size: tuple[int, int]) -> Any:
    """Position ids (picture, row, column) of a grid of tokens, [tokens, 3]."""
    import torch

    rows, columns = size
    return torch.tensor([(index, row, column) for row in range(rows) for column in range(columns)]).float()


def resident_bytes() -> int:
    """Resident memory of this process, resident pages of mapped files included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs two steps and records the process's memory.")
    parser.add_argument("side")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--text-tokens", type=int)
    parser.add_argument("--record", type=Path, required=True)
    arguments = parser.parse_args()
    step = make_step(arguments.side, arguments.folder, arguments.tokens, arguments.text_tokens)
    for _ in range(2):
        step()
    record = {"after": resident_bytes()}
    arguments.record.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
