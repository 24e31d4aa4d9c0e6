"""`kontext-export BUNDLE --triton REPO`: a bundle as a model repository of NVIDIA Triton Inference Server.

REPO.partial is filled and renamed to REPO. Its `models/` goes to the server; beside it lie a README, a Dockerfile, a
compose file and a Kubernetes manifest.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from string import Template

from PIL import Image

from ...errors import KontextError
from ...runtime.bundle import MANIFEST_NAME, Bundle
from ...runtime.server import contract
from ..bundle.journal import write_atomic
from ..bundle.output_folder import Kind, check_output, publish
from . import config

TEMPLATES = Path(__file__).resolve().parent / "templates"
PACKAGE = Path(__file__).resolve().parents[2]
MARKER = "repository.json"
FORMAT = "kontext-triton-repository"

BACKENDS = ("python", "onnxruntime")
"""Who runs the graphs: the runtime inside the server's Python backend, or the server's ONNX Runtime backend."""

WARMUP_PROMPT = "warm up"


@dataclass(frozen=True)
class Settings:
    """How a repository is laid out."""

    backend: str = "python"
    batch: int | None = None
    """Pictures sampled together at most; None: by the bundle's picture size."""
    instances: int = 1
    """Pipelines on each GPU, or on the CPU."""
    filters: Path | None = None
    """A Python file with `input_filter` and `output_filter`; None: one that allows everything."""


def write_repository(folder: Path, output: Path, settings: Settings, *, force: bool = False) -> Path:
    """Lays out the bundle in `folder` as `output`; its files become hard links where the disk allows, else copies.

    Returns:
        `output`.

    Raises:
        KontextError: not a bundle, one with links, or `output` is in use; the message says by what.
    """
    bundle = Bundle.open(folder)
    if bundle.links:
        raise KontextError(
            f"{folder} takes weights from files outside it: export it without --link-weights to serve it"
        )
    if settings.filters is not None:
        check_filters(settings.filters)
    check_output(output, REPOSITORY, force)
    partial = output.with_name(output.name + ".partial")
    try:
        clear(partial)
        partial.mkdir()
        write_marker(partial)
        fill(partial, bundle, settings)
        write_marker(partial)
        publish(partial, output, REPOSITORY, force)
    except OSError as fault:
        raise KontextError(f"cannot write {fault.filename or partial}: {fault.strerror}") from None
    return output


def fill(root: Path, bundle: Bundle, settings: Settings) -> None:
    """Writes everything but the marker."""
    batch = config.default_batch(bundle) if settings.batch is None else settings.batch
    in_server = settings.backend == "onnxruntime"
    stream, unary = (root / "models" / name for name in (contract.STREAM, contract.UNARY))
    for model, kind in ((stream, "stream"), (unary, "unary")):
        copy_runtime(model / "1")
        write(model / "1" / "model.py", template(f"{kind}_model.py.txt"))
    write(stream / "config.pbtxt", config.stream(batch, settings.instances, in_server))
    write(unary / "config.pbtxt", config.unary())
    filters = template("filters.py.txt") if settings.filters is None else settings.filters.read_text("utf-8")
    write(stream / "1" / "filters.py", filters)
    if not in_server:
        (stream / "warmup").mkdir()
        for name, data in warmup_inputs().items():
            write_atomic(stream / "warmup" / name, data)
    for name in (MANIFEST_NAME, *bundle.files):
        place(bundle.folder / name, stream / "1" / "bundle" / name)
    if in_server:
        for name, entry in bundle.graphs.items():
            model = root / "models" / f"{contract.UNARY}_{name}"
            place(entry.path, model / "1" / "model.onnx")
            place(entry.weights, model / "1" / entry.weights.relative_to(bundle.folder))
            write(model / "config.pbtxt", config.graph(bundle, name))
    values = {"name": bundle.name, "batch": batch, "unary": contract.UNARY, "stream": contract.STREAM}
    for name in ("README.md", "Dockerfile", "requirements.txt", "compose.yaml", "kubernetes.yaml"):
        write(root / name, Template(template(name)).substitute(values))


def warmup_inputs() -> dict[str, bytes]:
    """The tensors of the edit that the server makes before it says that it is ready, as the server reads them."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(picture, "PNG")
    one_step = struct.pack("<i", 1)
    return {
        contract.PROMPT.name: string(WARMUP_PROMPT.encode()),
        contract.IMAGES.name: string(picture.getvalue()),
        contract.STEPS.name: one_step,
    }


def string(data: bytes) -> bytes:
    """A string as an element of a tensor."""
    return struct.pack("<I", len(data)) + data


def template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode("utf-8"))


def copy_runtime(folder: Path) -> None:
    """The lean runtime as the package `kontext`, so that the server needs no installation of this one."""
    for source in (
        *sorted(PACKAGE.glob("*.py")),
        *sorted((PACKAGE / "runtime").rglob("*.py")),
    ):
        target = folder / "kontext" / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, source.read_bytes())


def place(source: Path, target: Path) -> None:
    """A hard link, or a copy on another disk. A bundle's files are never changed in place, so sharing is safe."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def check_filters(path: Path) -> None:
    """Raises KontextError unless `path` is Python that defines the two filters; nothing in it is run."""
    import ast

    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    except (SyntaxError, ValueError) as fault:
        raise KontextError(f"{path} is not Python: {fault}") from None
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if missing := [name for name in ("input_filter", "output_filter") if name not in functions]:
        raise KontextError(f"{path} defines no {' and no '.join(missing)}")


# -- the folder: refused unless it is ours, replaced whole --


def write_marker(root: Path) -> None:
    files = [path.relative_to(root).as_posix() for path in REPOSITORY.everything(root)]
    text = json.dumps({"format": FORMAT, "files": sorted({*files, MARKER})}, indent=2) + "\n"
    write_atomic(root / MARKER, text.encode("utf-8"))


def listed_files(root: Path) -> set[str] | None:
    """What the repository at `root` consists of; None where it is not one."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
        return set(marker["files"]) if marker["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


REPOSITORY = Kind("repository", "model repository of kontext-export", listed_files, ignored="__pycache__")
"""Python leaves that beside modules that the server imported."""


def clear(partial: Path) -> None:
    """Removes what a killed export left; anything else there is an error."""
    if not os.path.lexists(partial):
        return
    if not partial.is_dir() or (any(partial.iterdir()) and listed_files(partial) is None):
        raise KontextError(f"{partial} is in the way and is not an unfinished repository: move it away")
    shutil.rmtree(partial)
