"""The bundle's manifest as dataclasses, and a reader that trusts nothing in it.

`Bundle.open(folder)` checks version, fields, paths and sizes, and the digest if one is required. `content` reads what
is executed (graphs, kernels) and compares its SHA-256 each time; `verify()` does that for every file, weights too.
Nothing in a bundle is unpickled. Engines and kernels can be compiled again: a damaged one is an error when it is
wanted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..bundle_folder import FORMAT, MANIFEST_NAME, manifest_bytes
from ..errors import KontextError, bundle_errors
from ..regular_files import parse_json, read_regular
from .bundle_files import (
    REBUILT,
    FileEntry,
    check_sha256,
    file_digest,
    listed,
    read_files,
    remedy,
    unlisted_files,
)
from .digest import check_digest, digest_of
from .fields import Fields, refuse_control
from .graph_file import MAX_GRAPH_BYTES, RANKS, check_graph
from .links import LinkEntry, check_links, read_links, refuse_foreign, verify_links
from .lora_slots import LoraSlots, read_slots
from .preview_entry import PreviewEntry, read_preview
from .sampler_entry import SamplerEntry, read_sampler

FORMAT_VERSION = 1
LORA_VERSION = 2
"""Of bundles with `lora_slots`: earlier readers would not give these inputs to the graphs."""

MAX_CODE_BYTES = 1 << 30
"""Of a kernel. Engines may be larger, and are mapped."""

OUTPUTS = {graph: tuple(ranks) for graph, ranks in RANKS.items()}
"""Graph → its outputs in order, as in docs/bundle.md."""

GRAPHS = tuple(OUTPUTS)
TOKENIZERS = ("clip", "t5")


@dataclass(frozen=True)
class GraphEntry:
    """A graph's ONNX file and the safetensors file of its weights."""

    path: Path
    weights: Path
    opset: int


@dataclass(frozen=True)
class TokenizerEntry:
    """A Hugging Face `tokenizers` file, and the length that prompts are truncated or padded to."""

    path: Path
    max_length: int
    pad_id: int
    eos_id: int


@dataclass(frozen=True)
class TransformerEntry:
    """The sizes of the transformer that the pipeline needs."""

    in_channels: int
    head_dim: int
    axes_dim: tuple[int, int, int]
    theta: float
    text_dim: int
    pooled_dim: int


@dataclass(frozen=True)
class AutoencoderEntry:
    latent_channels: int
    downscale: int
    """A latent's side in pixels."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest is valid and whose files, but for `damaged` ones, have the sizes in it."""

    folder: Path
    name: str
    transformer: TransformerEntry
    autoencoder: AutoencoderEntry
    sampler: SamplerEntry
    graphs: Mapping[str, GraphEntry]
    tokenizers: Mapping[str, TokenizerEntry]
    files: Mapping[str, FileEntry]
    links: Mapping[str, LinkEntry]
    """By their names in the graphs; empty unless exported with --link-weights."""
    manifest: Mapping[str, Any]
    """The manifest as read, for what has no field here."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """File of `REBUILT` folders → what is wrong with it; whoever wants to use it, and `verify`, raise that."""
    digest: str = ""
    """What pins the bundle, as `digest_of` gives it."""
    lora_slots: LoraSlots | None = None
    preview: PreviewEntry | None = None
    """What LoRAs an edit may bring; None: none."""
    allow_links: bool = False
    """Links hold although this user has not exported the bundle."""

    @classmethod
    def open(cls, folder: str | Path, *, digest: str | None = None, allow_links: bool = False) -> Bundle:
        """Reads and checks the bundle in `folder`.

        Args:
            folder: of the bundle.
            digest: refuse a bundle with another one. Its files are then those of the manifest only after `verify`.
            allow_links: take weights from the files that it names outside the folder, although this user has not
                exported it.

        Raises:
            KontextError: says what is wrong and where.
        """
        folder = Path(folder)
        text = read_manifest(folder)
        found = digest_of(text)
        if digest is not None:
            check_digest(digest, found, folder)
        root = Fields(parse_manifest(text, folder), f"{folder / MANIFEST_NAME}: ")
        check_format(root, folder)
        files, damaged = read_files(root, folder)
        sound = {name: entry for name, entry in files.items() if name not in damaged}
        bundle = cls.read(folder, root, sound, GRAPHS)
        return replace(bundle, files=files, damaged=damaged, digest=found, allow_links=allow_links)

    @classmethod
    def outline(cls, folder: Path, manifest: dict[str, Any]) -> Bundle:
        """A bundle with constants and tokenizers but no graphs, for a pipeline with other networks."""
        paths = {entry["file"]: folder / entry["file"] for entry in manifest["tokenizers"].values()}
        files = {name: FileEntry(path.stat().st_size, file_digest(path)) for name, path in paths.items()}
        return cls.read(folder, Fields(manifest, f"{folder}: "), files, ())

    @classmethod
    def read(
        cls, folder: Path, root: Fields, files: Mapping[str, FileEntry], names: tuple[str, ...]
    ) -> Bundle:
        """The bundle that the manifest `root` describes, with the graphs in `names`."""
        model, graphs, tokenizers = root.group("model"), root.group("graphs"), root.group("tokenizers")
        bundle = cls(
            folder=folder,
            name=model.text("name"),
            transformer=read_transformer(model.group("transformer")),
            autoencoder=AutoencoderEntry(
                latent_channels=model.group("autoencoder").whole("latent_channels"),
                downscale=model.group("autoencoder").whole("downscale"),
            ),
            sampler=read_sampler(root.group("sampler")),
            graphs={name: read_graph(graphs.group(name), folder, files) for name in names},
            tokenizers={name: read_tokenizer(tokenizers.group(name), folder, files) for name in TOKENIZERS},
            files=files,
            links=read_links(root, folder),
            manifest=root.data,
            lora_slots=read_slots(root, names),
            preview=read_preview(root, model.group("autoencoder").whole("latent_channels")),
        )
        check_consistency(bundle)
        return bundle

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on disk, with the linked files."""
        own = sum(entry.size for name, entry in self.files.items() if name.startswith("weights/"))
        return own + sum(link.size for link in self.links.values())

    @property
    @bundle_errors()
    def linked_files(self) -> dict[str, Path]:
        """Name in the graphs → path of every file that they take weights from; empty for a bundle without links.

        The bundle's own files are included: ONNX Runtime takes either all files from the folder or all from the caller.

        Raises:
            BundleError: the links do not hold: this user has neither exported the bundle nor allowed them, or a file
                is another one than at the export.
        """
        if not self.links:
            return {}
        if not self.allow_links:
            refuse_foreign(self.links, self.digest, self.folder)
        check_links(self.links, self.folder)
        own = {
            entry.weights.relative_to(self.folder).as_posix(): entry.weights for entry in self.graphs.values()
        }
        return own | {name: link.path for name, link in self.links.items()}

    def content(
        self, path: Path, most: int = MAX_CODE_BYTES, kind: str = "a file that is read whole"
    ) -> bytes:
        """The bytes of one of the bundle's files, compared with the manifest's SHA-256; read as `read_regular` does.

        Raises:
            KontextError: it is damaged, too large, or not in the manifest.
        """
        name = path.relative_to(self.folder).as_posix()
        if name not in self.files:
            raise KontextError(f"{path} is not in the bundle's manifest, and is not loaded: {remedy(name)}")
        if name in self.damaged:
            raise KontextError(f"{self.damaged[name]}: {remedy(name)}")
        try:
            data = read_regular(path, most, kind)
        except OSError as error:
            raise KontextError(f"cannot read {path}: {error.strerror}") from None
        check_sha256(path, hashlib.sha256(data).hexdigest(), self.files[name].sha256, remedy(name))
        return data

    @bundle_errors()
    def graph_bytes(self, graph: str) -> bytes:
        """The ONNX file of `graph`. Whoever loads it reads it by this.

        Raises:
            BundleError: it is damaged, or not one that our exporter could have written.
        """
        path = self.graphs[graph].path
        data = self.content(path, MAX_GRAPH_BYTES, "a graph")
        check_graph(data, path, graph, {*self.files, *self.links})
        return data

    def unlisted(self) -> list[str]:
        """As `unlisted_files`."""
        return unlisted_files(self.folder, self.files)

    def verify(self, advance: Callable[[int], object] | None = None, *, compiled: bool = True) -> None:
        """Checks every file's SHA-256. Raises KontextError for the first file that differs from the manifest.

        Args:
            advance: called with the bytes read since the last call, for a progress bar.
            compiled: engines and kernels too, which are checked whenever they are loaded in any case.
        """
        if compiled:
            for name, problem in self.damaged.items():
                raise KontextError(f"{problem}: {remedy(name)}")
        for name in self.to_verify(compiled):
            path = self.folder / name
            try:
                digest = file_digest(path, advance)
            except OSError as error:
                raise KontextError(f"cannot read {path}: {error.strerror}") from None
            check_sha256(path, digest, self.files[name].sha256, remedy(name))
        verify_links(self.links, self.folder, advance)

    def to_verify(self, compiled: bool) -> list[str]:
        """The bundle's own files that `verify` reads."""
        return [name for name in self.files if compiled or not name.startswith(tuple(REBUILT))]

    def bytes_to_verify(self, compiled: bool = True) -> int:
        """What `verify` reads."""
        own = sum(self.files[name].size for name in self.to_verify(compiled))
        return own + sum(link.size for link in self.links.values())


def read_manifest(folder: Path) -> bytes:
    """The bytes of a bundle's manifest."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise KontextError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    try:
        return manifest_bytes(folder)
    except FileNotFoundError:
        raise KontextError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None


def parse_manifest(text: bytes, folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    try:
        data = parse_json(text)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise KontextError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise KontextError(f"{path} is not a JSON object")
    refuse_control(data, path)
    return data


def check_format(root: Fields, folder: Path) -> None:
    if root.data.get("format") != FORMAT:
        raise KontextError(f"{folder} is not a bundle: {MANIFEST_NAME} does not say {FORMAT!r}")
    version = root.whole("format_version")
    if version > LORA_VERSION:
        raise KontextError(
            f"{folder} has bundle format {version}, this reads up to {LORA_VERSION}: update kontext-export"
        )


def read_graph(entry: Fields, folder: Path, files: Mapping[str, FileEntry]) -> GraphEntry:
    return GraphEntry(
        path=listed(entry, "file", folder, files),
        weights=listed(entry, "weights", folder, files),
        opset=entry.whole("opset"),
    )


def read_tokenizer(entry: Fields, folder: Path, files: Mapping[str, FileEntry]) -> TokenizerEntry:
    return TokenizerEntry(
        path=listed(entry, "file", folder, files),
        max_length=entry.whole("max_length"),
        pad_id=entry.whole("pad_id"),
        eos_id=entry.whole("eos_id"),
    )


def read_transformer(entry: Fields) -> TransformerEntry:
    axes = entry.wholes("axes_dim", 3)
    head_dim = entry.whole("head_dim")
    if any(axis % 2 for axis in axes) or sum(axes) != head_dim:
        raise entry.error("axes_dim", f"must be even and add up to head_dim ({head_dim})")
    theta = entry.number("theta")
    if theta <= 1:
        raise entry.error("theta", "must be above 1")
    return TransformerEntry(
        in_channels=entry.whole("in_channels"),
        head_dim=head_dim,
        axes_dim=(axes[0], axes[1], axes[2]),
        theta=theta,
        text_dim=entry.whole("text_dim"),
        pooled_dim=entry.whole("pooled_dim"),
    )


def check_consistency(bundle: Bundle) -> None:
    """Checks what concerns several fields."""
    where = bundle.folder / MANIFEST_NAME
    latents = bundle.autoencoder.latent_channels
    if bundle.transformer.in_channels != 4 * latents:
        raise KontextError(
            f"{where}: model.transformer.in_channels is {bundle.transformer.in_channels}, "
            f"but 2x2 latents of {latents} channels make {4 * latents}"
        )
    patch = 2 * bundle.autoencoder.downscale
    if bundle.sampler.size_multiple % patch:
        raise KontextError(
            f"{where}: sampler.size_multiple must be a multiple of {patch} pixels, a token's side"
        )
