"""`--to gguf:TYPE`: the transformer in one GGUF file with Black Forest Labs' names, as ComfyUI-GGUF,
stable-diffusion.cpp and diffusers' `from_single_file` read it.

The file is a header, then every tensor from a multiple of 32 bytes on; the header's bytes are those that the gguf
package writes. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import KontextError
from ...model.gguf_file import KINDS, require_library
from ...model.stored_dtypes import STORED_DTYPES
from ...safetensors_header import TensorEntry, padded
from ...temporary_folder import temporary_folder
from .gguf_types import PLAIN, TYPES, GgufType, asked_form, form_of
from .layout import COMPUTE_FORMATS, Layout, PlannedFile

if TYPE_CHECKING:
    from torch import Tensor

    from .source import SourceWeight, WeightSource

ARCHITECTURE = "flux"
"""general.architecture, by which ComfyUI-GGUF knows the model."""

ALIGNMENT = 32
"""Of tensors in the file, in bytes: the format's default."""

IMATRIX = "quantize.imatrix"
"""Where llama.cpp's quantizer notes what the importance was measured on."""

Forms = Sequence[tuple["SourceWeight", str]]
"""Every weight with its number format, in the file's order."""


def chosen_type(source: WeightSource) -> GgufType:
    """The type after --to gguf:, or the plain one that the transformer computes in."""
    return TYPES[source.variant or source.dtype("transformer")]


def plan(source: WeightSource) -> Mapping[str, PlannedFile]:
    """Raises KontextError: ggml's library is needed and missing, or no weight can have the type."""
    from ...quant.ggml import stored_bytes, why_missing
    from ..weights.write import Piece, Stream

    require_library()
    kind = chosen_type(source)
    if kind.needs_library and (missing := why_missing()) is not None:
        raise KontextError(f"--to gguf:{kind.name} needs {missing}")
    forms = weight_forms(source, kind)
    check_some_fit(source, kind, forms)
    header = make_header(source, kind, forms)
    start = len(header)
    pieces = []
    for weight, form in forms:
        size = stored_bytes(form, math.prod(weight.shape))
        entry = TensorEntry(weight.name, form, weight.shape, start, start + padded(size, ALIGNMENT))
        pieces.append(Piece((entry,), partial(encode, source, weight, form, entry.size)))
        start = entry.stop
    return {GGUF.file_name: Stream(header, tuple(pieces), computes=kind.form not in PLAIN)}


def weight_forms(source: WeightSource, kind: GgufType) -> Forms:
    return [
        (weight, form_of(kind, weight.name, weight.shape, source.dtype(weight.network)))
        for weight in source.weights("transformer")
    ]


def check_some_fit(source: WeightSource, kind: GgufType, forms: Forms) -> None:
    """Raises KontextError if no weight has the type's format: another type is then what the file would be."""
    if kind.form in PLAIN or any(form == kind.form for _, form in forms):
        return
    block = KINDS[kind.form][1]
    widths = sorted({shape[-1] for _, shape in blocks(source, kind)})
    able = [name for name, each in TYPES.items() if any(width % KINDS[each.form][1] == 0 for width in widths)]
    raise KontextError(
        f"--to gguf:{kind.name} needs rows of {block} weights, and those of {source.config.name} have "
        f"{', '.join(map(str, widths))}: choose {', '.join(able)}"
    )


def blocks(source: WeightSource, kind: GgufType) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of the weights that the type's rule quantizes."""
    return [
        (weight.name, weight.shape)
        for weight in source.weights("transformer")
        if asked_form(kind, weight.name, weight.shape, source.dtype(weight.network)) not in PLAIN
    ]


def make_header(source: WeightSource, kind: GgufType, forms: Forms) -> bytes:
    """The file's bytes before its first tensor, as the gguf package writes them."""
    import gguf
    import numpy as np

    from ...quant.ggml import stored_bytes

    with temporary_folder("gguf") as folder:
        writer = gguf.GGUFWriter(folder / "header", ARCHITECTURE)
        writer.add_name(source.config.name)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(kind.number)
        if source.statistics is not None:
            writer.add_string(f"{IMATRIX}.dataset", str(source.statistics.about.get("samples", "")))
            weighed = sum(importance_of(source, weight, form) is not None for weight, form in forms)
            writer.add_int32(f"{IMATRIX}.entries_count", weighed)
        for weight, form in forms:
            number = gguf.GGMLQuantizationType[form]
            size = stored_bytes(form, math.prod(weight.shape))
            # The dtype says that `shape` counts weights and not bytes.
            writer.add_tensor_info(weight.name, weight.shape, np.dtype(np.float32), size, number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = (folder / "header").read_bytes()
    return header + bytes(padded(len(header), ALIGNMENT) - len(header))


def importance_of(source: WeightSource, weight: SourceWeight, form: str) -> Tensor | None:
    """The mean square of a weight's inputs, fp32 [in], where its format's rounding uses it and it was measured."""
    from ...quant.ggml import UNWEIGHED

    if source.statistics is None or form in UNWEIGHED:
        return None
    found = source.statistics.get(weight.network, weight.name)
    return None if found is None or not found.rows else found.mean_square()


def encode(source: WeightSource, weight: SourceWeight, form: str, size: int) -> list[Tensor]:
    """A weight as uint8 [size]: its blocks, then zeros.

    Raises:
        KontextError: it is damaged, or does not fit into its format.
    """
    import torch

    from ...quant.ggml import encode_rows

    rows = source.read_exactly(weight).reshape(-1, weight.shape[-1])
    try:
        data = encode_rows(form, rows, importance_of(source, weight, form))
    except KontextError as error:
        raise KontextError(f"{weight.name}: {error}") from None
    return [data if len(data) == size else torch.nn.functional.pad(data, (0, size - len(data)))]


def precision(source: WeightSource) -> list[str]:
    """Which formats hold how many of the weights, what took another format than the type's, and what was measured."""
    kind = chosen_type(source)
    shares: Counter[str] = Counter()
    instead: Counter[tuple[str, str]] = Counter()
    for weight, form in weight_forms(source, kind):
        shares[form] += math.prod(weight.shape)
        asked = asked_form(kind, weight.name, weight.shape, source.dtype(weight.network))
        if asked != form:
            instead[asked, form] += 1
    total = sum(shares.values())
    common = [(form, count) for form, count in shares.most_common() if count > total / 200]
    lines = [", ".join(f"{form} {count / total:.0%}" for form, count in common) + " of the weights"]
    for (asked, form), count in instead.items():
        block = KINDS[asked][1]
        lines.append(
            f"{count} matrices are {form}: their rows are no multiple of {block}, which {asked} needs"
        )
    if kind.needs_library:
        about = {} if source.statistics is None else source.statistics.about
        lines.append(
            f"columns weighed by their importance in {about['count']} edits of {about['samples']}"
            if about
            else "all columns count the same: --calibrate DIR weighs them by their importance in edits"
        )
    return lines


def usage(output: Path) -> str:
    return (
        f"{output} goes into ComfyUI's models/diffusion_models (ComfyUI-GGUF's Unet Loader), into stable-diffusion.cpp "
        "as --diffusion-model, or, with FLUX's sizes, into FluxTransformer2DModel.from_single_file"
    )


GGUF = Layout(
    name="gguf",
    readers="ComfyUI-GGUF, stable-diffusion.cpp and diffusers",
    formats=COMPUTE_FORMATS,
    variants={name: kind.describe() for name, kind in TYPES.items()},
    components=("transformer",),
    suffix=".gguf",
    computes={stored: name for name, stored in STORED_DTYPES.items()},
    calibrated=tuple(name for name, kind in TYPES.items() if kind.needs_library),
    takes=("calibrate", "name"),
    plan=plan,
    usage=usage,
    precision=precision,
)
