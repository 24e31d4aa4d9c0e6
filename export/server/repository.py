"""`kontext-export BUNDLE --triton REPO`: writes a bundle as a model repository of NVIDIA Triton Inference Server.

REPO.partial is filled and renamed to REPO, as bundles are. Its `models/` is the server's model repository; a README, a
Dockerfile, a compose file, a Kubernetes manifest and the front that checks requests are beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template

from PIL import Image

from ...bundle_folder import MANIFEST_NAME
from ...errors import KontextError
from ...files import fsync, write_atomic
from ...locks import locked_folder
from ...regular_files import read_regular
from ...runtime.bundle import Bundle
from ...runtime.bundle_files import remedy
from ...runtime.server import contract, desk
from ..bundle.folder_kind import BUNDLE_NAMES, GRAPH, JOURNAL, Kind, files_in, is_temporary, listed_in
from ..bundle.journal import Journal
from ..bundle.output_folder import check_free, locked_output, partial_folder, publish
from . import config, front

TEMPLATES = Path(__file__).resolve().parent / "templates"
PACKAGE = Path(__file__).resolve().parents[2]
MARKER = "repository.json"
FORMAT = "kontext-triton-repository"

BACKENDS = ("python", "onnxruntime")
"""What runs the graphs: the runtime in the server's Python backend, or the server's ONNX Runtime backend."""

WARMUP_PROMPT = "warm up"

MAX_FILTERS_BYTES = 4 << 20

FOR_PEOPLE = ("README.md", "Dockerfile", "compose.yaml", "kubernetes.yaml")
"""Files beside the models."""


@dataclass(frozen=True)
class Settings:
    """What a repository's models are set to."""

    backend: str = "python"
    batch: int | None = None
    """Most pictures to sample together; None: by the bundle's picture size."""
    instances: int = 1
    """Pipelines on each GPU, or on the CPU."""
    filters: Path | None = None
    """A Python file with `input_filter` and `output_filter`; None: filters that allow everything."""
    limits: contract.Limits = field(default_factory=contract.Limits)
    """What one request may ask for."""


def write_repository(folder: Path, output: Path, settings: Settings, *, force: bool = False) -> Path:
    """Writes the bundle in `folder` as the model repository `output`, with hard links to its files or, on another disk,
    copies.

    Returns:
        `output`.

    Raises:
        KontextError: `folder` is not a bundle or has links, something else is at `output`, or another process changes
            `folder` or writes `output`.
    """
    busy = f"another process is changing {folder}: try again later"
    with locked_folder(folder, busy, shared=True), locked_output(output, REPOSITORY) as root:
        return write_locked(Bundle.open(folder), root, settings, force)


def write_locked(bundle: Bundle, output: Path, settings: Settings, force: bool) -> Path:
    folder = bundle.folder
    if bundle.links:
        raise KontextError(
            f"{folder} takes weights from files outside it: export it without --link-weights to serve it"
        )
    for name, problem in bundle.damaged.items():
        raise KontextError(f"{problem}: {remedy(name)}")
    if settings.filters is not None:
        check_filters(settings.filters)
    check_free(output, REPOSITORY, force)
    partial, key = partial_folder(output), resume_key(bundle, settings)
    try:
        if Journal.of_published(output, key, REPOSITORY) is not None:
            return output
        check_free(output, REPOSITORY, force)
        with Journal.open(partial, key, REPOSITORY):
            write_files(partial, bundle, settings)
            write_marker(partial)
        publish(partial, output, REPOSITORY, force)
    except OSError as fault:
        raise KontextError(f"cannot write {fault.filename or partial}: {fault.strerror}") from None
    return output


def resume_key(bundle: Bundle, settings: Settings) -> dict[str, object]:
    """What two repositories agree in that are the same."""
    filters = b"" if settings.filters is None else settings.filters.read_bytes()
    return {
        "bundle": str(bundle.folder.resolve()),
        "manifest": hashlib.sha256((bundle.folder / MANIFEST_NAME).read_bytes()).hexdigest(),
        "filters": hashlib.sha256(filters).hexdigest(),
        **{name: value for name, value in asdict(settings).items() if name != "filters"},
    }


def write_files(root: Path, bundle: Bundle, settings: Settings) -> None:
    """Writes everything but the marker: both models, the bundle, its graphs as models, and the files for people."""
    batch = desk.default_batch(bundle) if settings.batch is None else settings.batch
    in_server = settings.backend == "onnxruntime"
    stream, unary = (root / "models" / name for name in (contract.STREAM, contract.UNARY))
    for model, kind in ((stream, "stream"), (unary, "unary")):
        copy_runtime(model / "1")
        write_text(model / "1" / "model.py", template(f"{kind}_model.py.txt"))
    write_text(
        stream / "config.pbtxt",
        config.stream_config(batch, settings.instances, in_server, bundle.digest, settings.limits),
    )
    write_text(unary / "config.pbtxt", config.unary_config())
    filters = template("filters.py.txt") if settings.filters is None else settings.filters.read_text("utf-8")
    write_text(stream / "1" / "filters.py", filters)
    if not in_server:
        (stream / "warmup").mkdir()
        for name, data in warmup_inputs().items():
            write_atomic(stream / "warmup" / name, data)
    for name in (MANIFEST_NAME, *bundle.files):
        link_or_copy(bundle.folder / name, stream / "1" / "bundle" / name)
    if in_server:
        for name, entry in bundle.graphs.items():
            model = root / "models" / f"{contract.UNARY}_{name}"
            link_or_copy(entry.path, model / "1" / "model.onnx")
            link_or_copy(entry.weights, model / "1" / entry.weights.relative_to(bundle.folder))
            write_text(model / "config.pbtxt", config.graph_config(bundle, name))
    values = {"name": bundle.name, "batch": batch, "unary": contract.UNARY, "stream": contract.STREAM}
    for path in sorted(TEMPLATES.glob("requirements*.txt")):
        write_text(root / path.name, template(path.name))
    for name in FOR_PEOPLE:
        write_text(root / name, Template(template(name)).substitute(values))
    for name in front.FILES:
        write_text(root / "front" / name, Template(template(f"front/{name}")).substitute(values))
    write_text(root / "front" / "contract.lua", front.contract_table(settings.limits))


def warmup_inputs() -> dict[str, bytes]:
    """Input tensor → bytes, in the server's format, of the edit that the server runs before it is ready."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(picture, "PNG")
    one_step = struct.pack("<i", 1)
    return {
        contract.PROMPT.name: string_element(WARMUP_PROMPT.encode()),
        contract.IMAGES.name: string_element(picture.getvalue()),
        contract.STEPS.name: one_step,
    }


def string_element(data: bytes) -> bytes:
    """One element of a BYTES tensor: its length in 4 bytes, then `data`."""
    return struct.pack("<I", len(data)) + data


def template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def copy_runtime(folder: Path) -> None:
    """Copies the lean runtime as the package `kontext`, so that the server need not install it."""
    for source in (
        *sorted(PACKAGE.glob("*.py")),
        *sorted((PACKAGE / "runtime").rglob("*.py")),
    ):
        target = folder / "kontext" / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, source.read_bytes())


def link_or_copy(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy on another disk. Links are safe: a bundle's files are never changed in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
        fsync(target)


def check_filters(path: Path) -> None:
    """Raises KontextError unless `path` is Python that defines both filters; runs nothing in it."""
    import ast

    try:
        tree = ast.parse(read_regular(path, MAX_FILTERS_BYTES, "a file of filters"))
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    except (SyntaxError, ValueError) as fault:
        raise KontextError(f"{path} is not Python: {fault}") from None
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if missing := [name for name in ("input_filter", "output_filter") if name not in functions]:
        raise KontextError(f"{path} defines no {' and no '.join(missing)}")


def write_marker(root: Path) -> None:
    """Writes the list of the repository's files, by which it is recognized."""
    files = {name for name in files_in(root) if name != JOURNAL and not is_temporary(name)}
    text = json.dumps({"format": FORMAT, "files": sorted({*files, MARKER})}, indent=2) + "\n"
    write_atomic(root / MARKER, text)


REPOSITORY = Kind(
    "repository",
    "model repository of kontext-export",
    MARKER,
    lambda folder: listed_in(folder / MARKER, FORMAT),
    names=re.compile(
        rf"{'|'.join(map(re.escape, (MARKER, *FOR_PEOPLE)))}|requirements[\w-]*\.txt"
        rf"|front/(?:{'|'.join(map(re.escape, (*front.FILES, 'contract.lua')))})"
        rf"|models/kontext\w*/(?:config\.pbtxt|warmup/[A-Z_]+|1/(?:model\.py|filters\.py|model\.onnx|kontext/.+\.py"
        rf"|weights/(?:{GRAPH})\.safetensors|bundle/(?:{BUNDLE_NAMES})))"
    ),
    unlisted=re.compile(r"models/kontext\w*/.*__pycache__/[^/]+\.pyc"),
)
"""The server's Python writes `__pycache__` beside modules that it imports."""
