"""What an edit is timed with, side by side: our backends on a bundle, and diffusers on the checkpoint of the same
model, as its users run it: eager, compiled, or quantized by torchao."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..child_process import module_command
from ..errors import KontextError
from ..installation import install_command
from ..runtime import OpenVINOOptions, Pipeline
from ..runtime.backends.options import Compute
from ..runtime.backends.protocol import Backend
from . import diffusers_peer
from .openvino_sides import OPENVINO
from .process_cost import edit_command
from .timing import StageTimer

DIFFUSERS = "diffusers"


@dataclass(frozen=True)
class Side:
    """A backend of ours on a bundle ("onnxruntime", "openvino"), or "diffusers" on a checkpoint."""

    backend: str
    compute: Compute = "fp32"
    compiler: str | None = None
    """torch.compile's backend for diffusers' transformer."""
    torchao: str | None = None
    """The torchao configuration that quantizes diffusers' transformer."""

    @property
    def module(self) -> str | None:
        """The optional library that this side needs."""
        if self.torchao is not None:
            return "torchao"
        if "openvino" in (self.backend, self.compiler):
            return "openvino"
        return "diffusers" if self.backend == DIFFUSERS else None


SIDES: dict[str, Side] = {
    "onnxruntime": Side("onnxruntime"),
    **{name: Side("openvino", compute) for name, compute in OPENVINO.items()},
    DIFFUSERS: Side(DIFFUSERS),
    "diffusers-bf16": Side(DIFFUSERS, "bf16"),
    "diffusers-compiled": Side(DIFFUSERS, compiler="inductor"),
    "diffusers-bf16-compiled": Side(DIFFUSERS, "bf16", compiler="inductor"),
    "diffusers-openvino": Side(DIFFUSERS, compiler="openvino"),
    "torchao-int8": Side(DIFFUSERS, torchao="Int8DynamicActivationInt8WeightConfig"),
    "torchao-int8-compiled": Side(
        DIFFUSERS, compiler="inductor", torchao="Int8DynamicActivationInt8WeightConfig"
    ),
}
"""Name → side. `diffusers` is eager in fp32."""

EXTRAS = {"torchao": ("peers",), "openvino": ("openvino",), "diffusers": ("export", "bench")}


def parse_sides(text: str | None) -> list[str]:
    """`diffusers,openvino-bf16` as names; None as none.

    Raises:
        KontextError: there is no such side, or what it needs is not installed.
    """
    names = list(dict.fromkeys(word.strip() for word in text.split(","))) if text else []
    if unknown := [name for name in names if name not in SIDES]:
        raise KontextError(f"--against takes {', '.join(SIDES)}; not {', '.join(map(repr, unknown))}")
    for name in names:
        module = SIDES[name].module
        if module is not None and importlib.util.find_spec(module) is None:
            raise KontextError(
                f"{name} needs {module}, which is not installed: {install_command(*EXTRAS[module])}"
            )
    return names


def prepare(
    side: Side, folder: Path, device: str, timer: StageTimer, wrap: Callable[[Backend, StageTimer], Backend]
) -> Callable[..., Image.Image]:
    """A function that edits (picture, prompt, settings) and times its stages.

    Args:
        side: what runs the edit.
        folder: its bundle; for diffusers, the checkpoint.
        device: "cpu" or "cuda"; ours may be any of the runtime's.
        timer: gets the stages' times.
        wrap: puts the timer around a backend of ours.
    """
    if side.backend == DIFFUSERS:
        peer = diffusers_peer.load_pipeline(folder, device=device, compute=side.compute)
        diffusers_peer.prepare_transformer(peer, compiler=side.compiler, torchao=side.torchao)
        diffusers_peer.attach_timer(peer, timer)
        return partial(diffusers_peer.edit, peer)
    pipe = Pipeline.load(folder, device=device, backend=backend_of(side), low_memory=False, embedding_cache=0)
    pipe.backend = wrap(pipe.backend, timer)
    return pipe.edit


def backend_of(side: Side) -> Any:
    """As `Pipeline.load` takes it."""
    return OpenVINOOptions(compute=side.compute) if side.backend == "openvino" else side.backend


def edit_flags(folder: Path, picture: Image.Image, prompt: str, settings: Mapping[str, Any]) -> list[str]:
    """The flags of one edit that `kontext-edit` and the script of diffusers share; writes `folder/in.png`."""
    picture.save(folder / "in.png")
    width, height = settings["size"]
    flags = ["--image", str(folder / "in.png"), "--prompt", prompt, "--size", f"{width}x{height}"]
    return flags + [
        word for key in ("steps", "guidance", "seed") for word in (f"--{key}", str(settings[key]))
    ]


def command(side: Side, folder: Path, device: str, flags: list[str]) -> list[str]:
    """The command line of one edit by a side; `flags` are what `kontext-edit` and the script of diffusers share."""
    same = [str(folder), *flags, "--device", device]
    if side.backend == DIFFUSERS:
        more = ["--compute", side.compute]
        more += ["--compiler", side.compiler] if side.compiler else []
        more += ["--torchao", side.torchao] if side.torchao else []
        return [*module_command("kontext.bench.diffusers_edit"), *same, *more]
    more = ["--backend", side.backend]
    more += ["--compute", side.compute] if side.backend == "openvino" else []
    return [*edit_command(), *same, *more]
