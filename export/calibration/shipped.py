"""Statistics of the embedded model that are shipped with it: `make demo` should not calibrate for half a minute.

They are used for the same weights, tokenizers, sizes, sampler and samples, whatever the number format; for anything
else, a model with a LoRA among it, an export calibrates. Write them again after either has changed:

python -P -m kontext.export.calibration.shipped
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...command import Parser, local_path, run_command
from ...errors import KontextError
from ...files import replacing
from ...model.checkpoint import Checkpoint
from ...model.networks import NETWORKS
from ...quant.formats.fp8 import FP8
from ...quant.packed_statistics import load_packed, save_packed
from ...quant.recipe import ANY_QUANTIZED, Recipe, choose_recipe
from ...quant.statistics import VERSION, Statistics
from ...safetensors_header import aligned, read_header
from ..edit_sets.samples import Samples
from .watched_networks import watched_linears, watched_operands

FOLDER = Path(__file__).resolve().parents[2] / "tiny"
SHIPPED = FOLDER / "calibration.safetensors"
DESCRIPTION = "Calibrates the embedded model and writes the statistics that are shipped with it."
CONTENTS = "contents"
"""Of the metadata: the digest of all else in the file."""

TOKENIZERS = ("tokenizer", "tokenizer_2")


def find_shipped(checkpoint: Checkpoint, recipe: Recipe, samples: Samples) -> Statistics | None:
    """The shipped statistics of the inputs that `recipe` quantizes, if they are of this model and these samples, and
    have them all: recipes that spare nothing quantize more. A damaged file is a warning, and not used."""
    if not SHIPPED.is_file():
        return None
    try:
        written = checked_metadata(SHIPPED)
    except KontextError as error:
        warnings.warn(f"{error}; calibrating instead", stacklevel=2)
        return None
    # Sizes first: the contents of a large model are not read in vain.
    if str(weight_bytes(checkpoint)) != written["bytes"] or digest(checkpoint, samples) != written["digest"]:
        return None
    found = load_packed(SHIPPED)
    wanted = watched_linears(checkpoint, recipe)
    wanted["transformer"] = wanted["transformer"] + watched_operands(checkpoint, recipe)
    if any(set(names) - set(found.inputs.get(network, {})) for network, names in wanted.items()):
        return None
    inputs = {
        network: {name: found.inputs[network][name] for name in names}
        for network, names in wanted.items()
        if names
    }
    return Statistics(inputs, found.about, found.file)


def checked_metadata(path: Path) -> Mapping[str, str]:
    """The metadata of a file of statistics.

    Raises:
        KontextError: the file cannot be read, or is not what was written.
    """
    metadata = read_header(path).metadata
    if metadata.get(CONTENTS) != contents_digest(path):
        raise KontextError(f"{path} is damaged: its contents are not those of the digest in it")
    return metadata


def contents_digest(path: Path) -> str:
    """SHA-256 of a file's tensors: names, formats, shapes and bytes; and of its metadata but that digest.

    Raises:
        KontextError: the file cannot be read.
    """
    header = read_header(path)
    tensors = sorted(header.tensors.values(), key=lambda tensor: tensor.start)
    start = tensors[0].start if tensors else 0
    entries = [(each.name, each.dtype, each.shape, each.start - start, each.stop - start) for each in tensors]
    metadata = {name: text for name, text in header.metadata.items() if name != CONTENTS}
    found = hashlib.sha256(json.dumps([entries, metadata], sort_keys=True).encode())
    try:
        with path.open("rb") as file:
            file.seek(start)
            found.update(file.read())
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    return found.hexdigest()


def weight_bytes(checkpoint: Checkpoint) -> int:
    return sum(path.stat().st_size for path in checkpoint.files)


def digest(checkpoint: Checkpoint, samples: Samples) -> str:
    """SHA-256 of everything that the statistics depend on, by content: the same on every machine."""
    tokenizers = [path for name in TOKENIZERS for path in checkpoint.tokenizer_folder(name).iterdir()]
    config = dataclasses.asdict(checkpoint.config)
    del config["name"]
    parts = {
        "version": VERSION,
        "weights": contents(list(checkpoint.files)),
        "tokenizers": contents(tokenizers),
        "loras": [[lora.digest, lora.weight] for lora in checkpoint.loras],
        "config": config,
        "samples": samples.digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def contents(paths: Sequence[Path]) -> list[list[str]]:
    """Folder, name and SHA-256 of files, in order."""
    return sorted(
        [path.parent.name, path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths
    )


def shipped_recipe(checkpoint: Checkpoint) -> Recipe:
    """A recipe that quantizes whatever some recipe quantizes."""
    recipe = choose_recipe(tuple(NETWORKS), checkpoint.parameters(), None, ANY_QUANTIZED)
    return dataclasses.replace(recipe, attention=FP8.name)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: write_shipped(arguments))


def write_shipped(arguments: Sequence[str] | None) -> None:
    """Calibrates the embedded model and writes its statistics."""
    parser = Parser(prog="python -P -m kontext.export.calibration.shipped", description=DESCRIPTION)
    parser.add_argument(
        "--output", type=local_path, default=SHIPPED, metavar="FILE", help="(tiny/calibration.safetensors)"
    )
    output: Path = parser.parse_args(arguments).output
    from ..bundle.tokenizer_files import read_tokenizers
    from ..progress import Progress
    from .calibrate import collect
    from .samples import scene_samples

    checkpoint, samples = Checkpoint.open(FOLDER / "checkpoint"), scene_samples()
    recipe, tokenizers = shipped_recipe(checkpoint), read_tokenizers(checkpoint)
    found = collect(checkpoint, recipe, tokenizers, samples, Progress(sys.stderr.isatty()))
    written = {"bytes": str(weight_bytes(checkpoint)), "digest": digest(checkpoint, samples)}
    with replacing(output) as temporary:
        save_packed(found, temporary, written)
        seal(temporary)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def seal(path: Path) -> None:
    """Adds the digest of its contents to a file's metadata; the tensors' bytes stay as they are."""
    digest, whole = contents_digest(path), path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"][CONTENTS] = digest
    text = aligned(json.dumps(header, separators=(",", ":")).encode())
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


if __name__ == "__main__":
    sys.exit(main())
