"""One step of the denoiser, ready to be timed: a bundle's in ONNX Runtime, or diffusers' in bf16 on the checkpoint.

As a program it makes a few such steps in a process of its own and notes its memory: what `quantspeed` reports.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TIME, GUIDANCE = 0.5, 2.0
"""Whose thousandfolds bf16 holds: diffusers casts them, and this is not about that."""


def grid(tokens: int) -> tuple[int, int]:
    """Rows and columns of about `tokens`, as square as powers of two go."""
    rows = 1 << ((tokens - 1).bit_length() // 2)
    return rows, tokens // rows


def inputs(tokens: int, channels: int, text: tuple[int, int], pooled: int) -> dict[str, Array]:
    """What both sides are given, from one seed; `text` is (tokens, width)."""
    rng = np.random.default_rng(0)
    shapes = {
        "target": (1, tokens, channels),
        "reference": (1, tokens, channels),
        "text": (1, *text),
        "pooled": (1, pooled),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def bundle_step(folder: Path, tokens: int) -> Callable[[], Array]:
    """The transformer of a bundle; its modulation is computed here, once, as the sampler does."""
    from ..runtime import Pipeline
    from ..runtime.tokens import positions, rope_tables

    pipe = Pipeline.load(folder, device="cpu", low_memory=False)
    model, sizes = pipe.bundle.transformer, pipe.bundle.manifest["model"]
    text = (sizes["text_encoder_2"]["max_length"], model.text_dim)
    given = inputs(tokens, model.in_channels, text, model.pooled_dim)
    times, guidance = np.array([TIME], np.float32), np.array([GUIDANCE], np.float32)
    modulation = pipe.backend.run(
        "modulation", {"timestep": times, "guidance": guidance, "pooled": given.pop("pooled")}
    )
    pipe.backend.release("modulation")
    cos, sin = rope_tables(positions(text[0], [grid(tokens)] * 2), model.axes_dim, model.theta)
    given |= {"rope_cos": cos, "rope_sin": sin, **modulation}

    def step() -> Array:
        velocity: Array = pipe.backend.run("transformer", given)["velocity"]
        return velocity

    return step


def diffusers_step(checkpoint: Path, tokens: int) -> Callable[[], Array]:
    """diffusers' transformer, eager, bf16; the modulation is part of each of its steps."""
    import torch
    from diffusers import FluxTransformer2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(usable())
    model = FluxTransformer2DModel.from_pretrained(
        checkpoint / "transformer", torch_dtype=torch.bfloat16, local_files_only=True
    ).eval()
    t5 = json.loads((checkpoint / "text_encoder_2" / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((checkpoint / "tokenizer_2" / "tokenizer_config.json").read_text(encoding="utf-8"))
    length = int(tokenizer["model_max_length"])
    given = inputs(
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

    def step() -> Array:
        with torch.inference_mode():
            velocity: Array = model(**arguments)[0][:, :tokens].float().numpy()
        return velocity

    return step


def token_ids(index: int, size: tuple[int, int]) -> Any:
    """Position ids (picture, row, column) of a grid of tokens."""
    import torch

    rows, columns = size
    return torch.tensor([(index, row, column) for row in range(rows) for column in range(columns)]).float()


def usable() -> int:
    from .machine import usable_cores

    return usable_cores()


def resident_bytes() -> int:
    """Of this process now, mapped files' pages in memory included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description="Two steps in a process of their own.")
    parser.add_argument("side", choices=["bundle", "diffusers"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True)
    arguments = parser.parse_args()
    before = resident_bytes()
    make = bundle_step if arguments.side == "bundle" else diffusers_step
    step = make(arguments.folder, arguments.tokens)
    for _ in range(2):
        step()
    record = {"before": before, "after": resident_bytes()}
    arguments.record.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
