"""The bundle's manifest as dataclasses, and a reader that trusts nothing in it.

`Bundle.open(folder)` checks version, fields, paths and sizes; `verify()` also checks every file's SHA-256. Nothing in
a bundle is unpickled or executed. Engines and kernels can be compiled again: a damaged one is an error when it is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..bundle_folder import FORMAT, MANIFEST_NAME, manifest_bytes
from ..errors import KontextError
from ..regular_files import parse_json, read_regular
from .bundle_files import FileEntry, LinkEntry, file_digest, listed, read_files, read_links, remedy
from .fields import Fields
from .graph_file import MAX_GRAPH_BYTES, RANKS, check_graph
from .sampler_entry import SamplerEntry, read_sampler

FORMAT_VERSION = 1
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

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Reads and checks the bundle in `folder`. Raises KontextError that says what is wrong and where."""
        folder = Path(folder)
        root = Fields(read_manifest(folder), f"{folder / MANIFEST_NAME}: ")
        check_format(root, folder)
        files, damaged = read_files(root, folder)
        sound = {name: entry for name, entry in files.items() if name not in damaged}
        return replace(cls.read(folder, root, sound, GRAPHS), files=files, damaged=damaged)

    @classmethod
    def outline(cls, folder: Path, manifest: dict[str, Any]) -> Bundle:
        """A bundle with constants and tokenizers but no graphs, for a pipeline with other networks."""
        files = {
            entry["file"]: FileEntry((folder / entry["file"]).stat().st_size, "")
            for entry in manifest["tokenizers"].values()
        }
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
        )
        check_consistency(bundle)
        return bundle

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on disk, with the linked files."""
        own = sum(entry.size for name, entry in self.files.items() if name.startswith("weights/"))
        return own + sum(link.size for link in self.links.values())

    @property
    def linked_files(self) -> dict[str, Path]:
        """Name in the graphs → path of every file that they take weights from; empty for a bundle without links.

        The bundle's own files are included: ONNX Runtime takes either all files from the folder or all from the caller.
        """
        if not self.links:
            return {}
        own = {
            entry.weights.relative_to(self.folder).as_posix(): entry.weights for entry in self.graphs.values()
        }
        return own | {name: link.path for name, link in self.links.items()}

    def check_graph(self, graph: str) -> None:
        """Raises KontextError unless the ONNX file of `graph` is one that our exporter could have written. Whoever
        loads it calls this first."""
        path = self.graphs[graph].path
        try:
            data = read_regular(path, MAX_GRAPH_BYTES, "a graph")
        except OSError as error:
            raise KontextError(f"cannot read {path}: {error.strerror}") from None
        check_graph(data, path, graph, {*self.files, *self.links})

    def verify(self, advance: Callable[[int], object] | None = None) -> None:
        """Checks every file's SHA-256. Raises KontextError for the first file that differs from the manifest.

        Args:
            advance: called with the bytes read since the last call, for a progress bar.
        """
        for name, problem in self.damaged.items():
            raise KontextError(f"{problem}: {remedy(name)}")
        for name, entry in self.files.items():
            path = self.folder / name
            try:
                digest = file_digest(path, advance)
            except OSError as error:
                raise KontextError(f"cannot read {path}: {error.strerror}") from None
            if digest != entry.sha256:
                raise KontextError(f"{path} is damaged: its SHA-256 is not the manifest's; {remedy(name)}")


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise KontextError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    try:
        data = parse_json(manifest_bytes(folder))
    except FileNotFoundError:
        raise KontextError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise KontextError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise KontextError(f"{path} is not a JSON object")
    return data


def check_format(root: Fields, folder: Path) -> None:
    if root.data.get("format") != FORMAT:
        raise KontextError(f"{folder} is not a bundle: {MANIFEST_NAME} does not say {FORMAT!r}")
    version = root.whole("format_version")
    if version != FORMAT_VERSION:
        advice = "update kontext-export" if version > FORMAT_VERSION else "export the model again"
        raise KontextError(f"{folder} has bundle format {version}, this reads {FORMAT_VERSION}: {advice}")


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
