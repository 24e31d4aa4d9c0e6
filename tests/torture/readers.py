"""Readers of files that someone else wrote, each with healthy files to damage: what `read_files.py` runs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from damage import damaged_bytes, damaged_json, damaged_protobuf, damaged_safetensors, damaged_text

PROMPTS = ["make the red circle blue", "é \N{SNOWMAN} <|endoftext|> aaaa b", ""]


@dataclass(frozen=True)
class Reader:
    """`make` gives a damaged file from a seed's source of numbers; `read` reads it."""

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]


def linked(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle, or checkpoint, in hard links but for its JSON files."""
    copy = shutil.copytree(bundle, folder, copy_function=os.link)
    for path in copy.rglob("*.json"):
        text = path.read_bytes()
        path.unlink()
        path.write_bytes(text)
    return copy


def manifest(base: Path, scratch: Path) -> Reader:
    """manifest.json, and all that reads it without running a network."""
    from kontext.export.cli.inspect_bundle import describe_bundle
    from kontext.runtime.backends.runnable import Formats
    from kontext.runtime.bundle import Bundle
    from kontext.runtime.engines import read_engines
    from kontext.runtime.request import build_request
    from kontext.runtime.sampler import schedule
    from kontext.runtime.tokens import positions, rope_tables

    folder = linked(base / "bundle", scratch / "bundle")
    healthy = json.loads((folder / "manifest.json").read_text())

    def read(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        bundle = Bundle.open(folder)
        list(describe_bundle(folder))
        read_engines(bundle)
        Formats.of(bundle).refusal("cpu")
        request = build_request(bundle.sampler, None, "x")
        schedule(request.steps, 64, bundle.sampler)
        rope_tables(positions(8, [(4, 4)]), bundle.transformer.axes_dim, bundle.transformer.theta)

    return Reader(lambda source: damaged_text(healthy, source), read)


def graph(base: Path, scratch: Path) -> Reader:
    """ONNX files, as far as we read them ourselves."""
    from kontext.runtime.graph_file import check_graph

    healthy = (base / "bundle" / "text_encoder.onnx").read_bytes()  # the smallest

    def read(data: bytes) -> None:
        check_graph(data, scratch / "x.onnx", "text_encoder", {"weights/text_encoder.safetensors"})

    return Reader(lambda source: damaged_protobuf(healthy, source), read)


def session(base: Path, scratch: Path) -> Reader:
    """ONNX files that pass our check, loaded and run by ONNX Runtime."""
    import numpy as np

    from kontext.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from kontext.runtime.bundle import Bundle

    folder = linked(base / "bundle", scratch / "bundle")
    bundle = Bundle.open(folder)
    path = bundle.graphs["text_encoder"].path
    healthy = path.read_bytes()
    ids = np.ones((1, bundle.tokenizers["clip"].max_length), np.int64)

    def read(data: bytes) -> None:
        path.unlink()
        path.write_bytes(data)
        changed = rehashed(folder, path)
        graphs = {"text_encoder": path}
        backend = OnnxRuntimeBackend(graphs, "cpu", **loading(changed))
        backend.run("text_encoder", {"input_ids": ids})

    return Reader(lambda source: damaged_protobuf(healthy, source), read)


def loading(bundle: Any) -> dict[str, Any]:
    """How `open_backend` gives a bundle's graphs to ONNX Runtime."""
    from kontext.runtime.backends import select

    found: dict[str, Any] = {}

    class Spy:
        def __init__(self, graphs: object, device: object, options: object, **more: Any) -> None:
            found.update(more)

    import kontext.runtime.backends.onnxruntime as module

    real, module.OnnxRuntimeBackend = module.OnnxRuntimeBackend, Spy  # type: ignore[misc]
    try:
        select.open_backend(select.OnnxRuntimeOptions(), "cpu", bundle, low_memory=False)
    finally:
        module.OnnxRuntimeBackend = real  # type: ignore[misc]
    return found


def rehashed(folder: Path, path: Path) -> Any:
    """The bundle with the size and digest that a file now has in its manifest."""
    from kontext.runtime.bundle import Bundle

    manifest = json.loads((folder / "manifest.json").read_text())
    data = path.read_bytes()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"][path.relative_to(folder).as_posix()] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


def networks(base: Path, scratch: Path) -> Reader:
    """The sizes in manifest.json, by which PyTorch's backend builds all networks, and an edit of one step."""
    from PIL import Image

    from kontext.runtime.backends.options import TorchOptions
    from kontext.runtime.pipeline import Pipeline

    folder = linked(base / "bundle", scratch / "bundle")
    healthy = json.loads((folder / "manifest.json").read_text())
    picture = Image.new("RGB", (32, 32))

    def make(source: random.Random) -> bytes:
        return json.dumps({**healthy, "model": damaged_json(healthy["model"], source)}).encode()

    def read(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        pipeline = Pipeline.load(folder, device="cpu", backend=TorchOptions())
        pipeline.edit(picture, PROMPTS[0], size=(32, 32), steps=1)

    return Reader(make, read)


def tokenizer(base: Path, scratch: Path) -> Reader:
    """Both tokenizers, and prompts that they encode."""
    from kontext.runtime.bundle import TokenizerEntry
    from kontext.runtime.tokenizer import PromptTokenizer

    healthy = [
        json.loads((base / "bundle" / "tokenizers" / f"{name}.json").read_text()) for name in ("clip", "t5")
    ]
    path = scratch / "tokenizer.json"

    def make(source: random.Random) -> bytes:
        root = source.choice(healthy)
        if source.random() < 0.7:  # its components, not one of a thousand pieces
            parts = {name: part for name, part in root.items() if name != "model"}
            small = {name: part for name, part in root["model"].items() if name not in ("vocab", "merges")}
            text = damaged_text({**parts, "model": small}, source)
            big = ",".join(
                f'"{name}":{json.dumps(root["model"][name])}'
                for name in ("vocab", "merges")
                if name in root["model"]
            )
            return text.replace(b'"model": {', b'"model": {' + big.encode() + b",", 1)
        return damaged_text(root, source)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        PromptTokenizer(TokenizerEntry(path, 24, 0, 1), "T5")(PROMPTS)

    return Reader(make, read)


def weights(name: str, base: Path, scratch: Path) -> Reader:
    """safetensors or GGUF: the header, quantized weights, every tensor."""
    from kontext.model.weight_files import open_weight_file

    healthy = [path.read_bytes() for path in sorted(base.glob(f"*.{name}"))]
    path = scratch / f"x.{name}"
    damage = damaged_safetensors if name == "safetensors" else functools.partial(damaged_bytes, most=6)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for info in open_weight_file(path).tensors.values():
            info.read()

    return Reader(lambda source: damage(source.choice(healthy), source), read)


def lora(base: Path, scratch: Path) -> Reader:
    """A LoRA's header, PEFT's settings beside it, and its factors."""
    from kontext.model.checkpoint import Checkpoint
    from kontext.model.lora.read import read_loras

    checkpoint = Checkpoint.open(base / "checkpoint")
    shapes = {name: network.shapes for name, network in checkpoint.networks.items()}
    healthy = (base / "lora" / "adapter_model.safetensors").read_bytes()
    settings = json.loads((base / "lora" / "adapter_config.json").read_text())
    folder = scratch / "lora"
    folder.mkdir()
    separator = b"\0adapter_config.json\0"

    def make(source: random.Random) -> bytes:
        both = source.random() < 0.2
        header = both or source.random() < 0.6
        file = damaged_safetensors(healthy, source) if header else healthy
        config = damaged_text(settings, source) if both or not header else json.dumps(settings).encode()
        return file + separator + config

    def read(data: bytes) -> None:
        file, _, config = data.rpartition(separator)
        path = folder / "adapter_model.safetensors"
        path.write_bytes(file)
        (folder / "adapter_config.json").write_bytes(config)
        import torch

        updates, _ = read_loras([(path, 1.0)], shapes, checkpoint.config, partial=True)
        for network, changes in updates.items():
            for weight, each in changes.items():
                tensor = torch.zeros(shapes[network][weight])
                for update in each:
                    update.apply_to(tensor)

    return Reader(make, read)


def ready_lora(_base: Path, scratch: Path) -> Reader:
    """A LoRA that was made ready for bundles, and the inputs that it becomes."""
    from kontext.runtime.lora import Lora, read_loras
    from kontext.runtime.lora_slots import LoraSlots

    slots = LoraSlots(8, {"transformer": (6, 8), "modulation": (3, 5)}, "a layout")
    healthy, path = ready_lora_bytes(slots.rows, slots.layout), scratch / "x.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_loras(slots, [(Lora.open(path, slots), 0.5)])

    return Reader(lambda source: damaged_safetensors(healthy, source), read)


def ready_lora_bytes(rows: Mapping[str, tuple[int, int]], layout: str) -> bytes:
    """A healthy file of rank 2."""
    import numpy as np
    from safetensors.numpy import save

    tensors = {
        f"{graph}.{name}": np.ones((count, 2), np.float32)
        for graph, counts in rows.items()
        for name, count in zip(("lora_down", "lora_up"), counts, strict=True)
    }
    return save(tensors, {"format": "kontext-lora", "version": "1", "layout": layout, "source": "style"})


def checkpoint(base: Path, scratch: Path) -> Reader:
    """The JSON files of a diffusers folder, and CLIP's merges."""
    from kontext.export.bundle.tokenizer_files import read_tokenizers
    from kontext.model.checkpoint import Checkpoint

    folder = linked(base / "checkpoint", scratch / "checkpoint")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    names.append("tokenizer/merges.txt")
    healthy = {name: (folder / name).read_bytes() for name in names}
    (folder / "tokenizer" / "merges.txt").unlink()

    def make(source: random.Random) -> bytes:
        name = source.choice(names)
        if name.endswith(".txt"):
            return name.encode() + b"\0" + damaged_bytes(healthy[name], source)
        return name.encode() + b"\0" + damaged_text(json.loads(healthy[name]), source)

    def read(data: bytes) -> None:
        name, _, text = data.partition(b"\0")
        for each, content in healthy.items():
            (folder / each).write_bytes(text if each == name.decode() else content)
        read_tokenizers(Checkpoint.open(folder))

    return Reader(make, read)


READERS: dict[str, Callable[[Path, Path], Reader]] = {
    "manifest": manifest,
    "graph": graph,
    "session": session,
    "networks": networks,
    "tokenizer": tokenizer,
    "safetensors": functools.partial(weights, "safetensors"),
    "gguf": functools.partial(weights, "gguf"),
    "lora": lora,
    "ready_lora": ready_lora,
    "checkpoint": checkpoint,
}
