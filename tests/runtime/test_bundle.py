"""The bundle's reader: what it reads, and one line for every way in which a bundle can be wrong."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kontext.bundle_folder import MANIFEST_NAME
from kontext.errors import KontextError
from kontext.runtime.bundle import GRAPHS, Bundle
from kontext.runtime.manifest_ranges import MOST_FILES

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change(folder: Path, edit: Change) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    edit(manifest)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def fault(folder: Path) -> str:
    with pytest.raises(KontextError) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_a_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.name == "kontext-random"
    assert set(bundle.graphs) == set(GRAPHS)
    assert all(entry.path.is_file() and entry.weights.is_file() for entry in bundle.graphs.values())
    assert bundle.transformer.axes_dim == (8, 12, 12)
    assert bundle.tokenizers["t5"].max_length == 24
    assert (128, 128) in bundle.sampler.preferred_sizes
    assert bundle.weight_bytes == sum(path.stat().st_size for path in (tiny_bundle / "weights").iterdir())


def test_too_many_files(copy: Path) -> None:
    entry = {"size": 0, "sha256": hashlib.sha256().hexdigest()}
    change(
        copy,
        lambda manifest: manifest["files"].update({f"kernels/{i}": entry for i in range(MOST_FILES)}),
    )
    assert fault(copy) == f"{copy / MANIFEST_NAME}: files has more than {MOST_FILES} files"


def test_verify_reads_every_byte_and_finds_a_changed_one(copy: Path) -> None:
    read: list[int] = []
    bundle = Bundle.open(copy)
    bundle.verify(read.append)
    assert sum(read) == sum(entry.size for entry in bundle.files.values())
    weights = copy / "weights" / "transformer.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(KontextError, match=r"transformer\.safetensors is damaged"):
        Bundle.open(copy).verify()


FILES = ("transformer.onnx", "weights/modulation.safetensors", "tokenizers/t5.json", "engines/sm89/x.engine")


@pytest.fixture
def compiled(copy: Path) -> Path:
    """A bundle with an engine and a kernel, of 4 bytes each."""
    for name in ("engines/sm89/x.engine", "kernels/sm_89/0.cubin"):
        (copy / name).parent.mkdir(parents=True)
        (copy / name).write_bytes(b"code")
        entry = {"size": 4, "sha256": hashlib.sha256(b"code").hexdigest()}
        change(copy, lambda manifest, name=name, entry=entry: manifest["files"].update({name: entry}))
    return copy


def flip(path: Path) -> None:
    """Changes the last bit of a file, in place and with its size kept."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*FILES, "kernels/sm_89/0.cubin"])
def test_a_flipped_bit_in_any_kind_of_file(compiled: Path, name: str) -> None:
    bundle = Bundle.open(compiled)
    assert bundle.content(compiled / name) == (compiled / name).read_bytes()
    flip(compiled / name)
    words = rf"{re.escape(name)} is damaged: its SHA-256 is not the manifest's; "
    with pytest.raises(KontextError, match=words):
        bundle.content(compiled / name)
    with pytest.raises(KontextError, match=words):
        bundle.verify()


def test_what_was_compiled_is_checked_when_it_is_loaded(compiled: Path) -> None:
    """Engines are gigabytes, many of them for other machines."""
    bundle = Bundle.open(compiled)
    read: list[int] = []
    bundle.verify(read.append, compiled=False)
    assert sum(read) == bundle.bytes_to_verify(compiled=False) == bundle.bytes_to_verify() - 8
    flip(compiled / FILES[-1])
    bundle.verify(compiled=False)


def test_what_is_not_in_the_manifest_is_never_loaded(compiled: Path) -> None:
    (compiled / "kernels/sm_89/1.cubin").write_bytes(b"code")
    (compiled / "other.onnx").write_bytes(b"graph")
    (compiled / "notes.txt").write_text("not executable, and no business of ours")
    bundle = Bundle.open(compiled)
    assert bundle.unlisted() == ["kernels/sm_89/1.cubin", "other.onnx"]
    with pytest.raises(KontextError, match=r"1\.cubin is not in the bundle's manifest, and is not loaded"):
        bundle.content(compiled / "kernels/sm_89/1.cubin")


def test_only_the_required_bundle_is_opened(copy: Path) -> None:
    digest = "sha256:" + hashlib.sha256((copy / MANIFEST_NAME).read_bytes()).hexdigest()
    assert Bundle.open(copy, digest=digest).digest == digest
    (copy / MANIFEST_NAME).write_bytes((copy / MANIFEST_NAME).read_bytes() + b" ")
    with pytest.raises(KontextError, match=rf"is not the required bundle: its digest is .*, not {digest}$"):
        Bundle.open(copy, digest=digest)


def test_a_bundle_behind_a_link_is_fine(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_bundle, target_is_directory=True)
    Bundle.open(tmp_path / "link").verify()


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    assert "does not exist" in fault(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in fault(tmp_path / "file")
    assert "has no manifest.json" in fault(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ('{"format": "kontext-bundle", ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "is not a bundle"),
        ('{"format": "onnx-model"}', "is not a bundle"),
        ('{"format": "kontext-bundle"}', "format_version is missing"),
        ('{"format": "kontext-bundle", "format_version": 3}', "update kontext-export"),
        ('{"format": "kontext-bundle", "format_version": true}', "format_version must be a whole number"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    assert message in fault(tmp_path)


def test_a_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(b'{"format": "\xff"}')
    assert "is not JSON" in fault(tmp_path)


def test_a_missing_file_and_a_short_one(copy: Path) -> None:
    (copy / "weights" / "vae_encoder.safetensors").write_bytes(b"")
    assert "has 0 bytes" in fault(copy)
    (copy / "weights" / "vae_encoder.safetensors").unlink()
    assert "vae_encoder.safetensors is missing" in fault(copy)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/hostname", "weights/../../secret", "", "a\\b", "C:x", "./a", "a//b", "."],
)
def test_no_path_leaves_the_folder(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_text("x")
    entry = {"size": 1, "sha256": "0" * 64}
    change(copy, lambda manifest: manifest["files"].update({name: entry}))
    assert "is not a path inside the bundle" in fault(copy)


@pytest.mark.parametrize("name", ["../transformer.onnx", "/transformer.onnx", "manifest.json"])
def test_graphs_are_among_the_files(copy: Path, name: str) -> None:
    change(copy, lambda manifest: manifest["graphs"]["transformer"].update(file=name))
    assert "graphs.transformer.file" in fault(copy)


def test_no_link_leaves_the_folder(copy: Path) -> None:
    graph = copy / "transformer.onnx"
    outside = copy.parent / "outside.onnx"
    graph.rename(outside)
    graph.symlink_to(outside)
    assert "is a symbolic link to outside the bundle" in fault(copy)
    graph.unlink()
    graph.symlink_to(graph.name)
    assert "cannot read" in fault(copy)  # a link to itself


def test_an_outline_has_no_graphs(tiny_bundle: Path) -> None:
    """What a pipeline needs whose networks are not the bundle's: constants and tokenizers."""
    whole = Bundle.open(tiny_bundle)
    manifest = {**whole.manifest, "graphs": {}, "files": {}}
    outline = Bundle.outline(tiny_bundle, manifest)
    assert (outline.sampler, outline.tokenizers) == (whole.sampler, whole.tokenizers)
    assert outline.graphs == {}
    sizes = {name: entry.size for name, entry in whole.files.items() if name.startswith("tokenizers/")}
    assert {name: entry.size for name, entry in outline.files.items()} == sizes
    for tokenizer in outline.tokenizers.values():
        assert outline.content(tokenizer.path) == tokenizer.path.read_bytes()


def test_what_cannot_be_read_says_why(copy: Path) -> None:
    (copy / MANIFEST_NAME).unlink()
    (copy / MANIFEST_NAME).mkdir()
    assert "manifest.json: Is a directory" in fault(copy)


@pytest.mark.parametrize(("name", "least"), [("max_length", 2), ("pad_id", 0), ("eos_id", 0)])
def test_the_least_that_a_tokenizer_says(copy: Path, name: str, least: int) -> None:
    change(copy, lambda manifest: manifest["tokenizers"]["t5"].update({name: least}))
    assert getattr(Bundle.open(copy).tokenizers["t5"], name) == least
    change(copy, lambda manifest: manifest["tokenizers"]["t5"].update({name: least - 1}))
    assert f"tokenizers.t5.{name} must be a whole number from {least}" in fault(copy)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sampler.steps", 0, "sampler.steps must be a whole number from 1 to 1000, not 0"),
        ("sampler.steps", "28", "sampler.steps must be a whole number"),
        ("sampler.guidance", float("nan"), "sampler.guidance must be a number"),
        ("sampler.guidance", True, "sampler.guidance must be a number"),
        ("sampler.max_tokens", 256, "sampler.max_tokens must be"),
        ("sampler.preferred_sizes", [], "must be a list of at most 1000 sizes"),
        ("sampler.preferred_sizes", [[128]], "must be 2 whole numbers from 1 to 4096"),
        ("sampler.preferred_sizes", [[120, 128]], "must be multiples of size_multiple"),
        ("sampler.reference_method", "beside", "must be one of index, offset, stitch, not 'beside'"),
        ("sampler.reference_method", None, "must be one of index, offset, stitch"),
        ("sampler.size_multiple", 8, "size_multiple must be a multiple of 16"),
        ("model.name", "", "model.name must be a non-empty string"),
        ("model.name", "\x1b[31mEVIL\nLINE2", "has the control character U+001B"),
        ("engines", [{"precision": "fp16\u202e"}], "has the control character U+202E"),
        ("files", {"a\nb": {"size": 1, "sha256": "0" * 64}}, "has the control character U+000A"),
        ("plan", {"stages": {"\x9b": {}}}, "has the control character U+009B"),
        ("model.transformer", 3, "model.transformer must be an object"),
        ("model.transformer.axes_dim", [8, 12], "must be 3 whole numbers from 2 to 4096"),
        ("model.transformer.axes_dim", [8, 12, 14], "add up to head_dim"),
        ("model.transformer.theta", 1, "theta must be above 1"),
        ("model.transformer.in_channels", 32, "2x2 latents of 16 channels make 64"),
        ("tokenizers.t5.max_length", 1, "tokenizers.t5.max_length"),
        ("files.transformer.onnx.sha256", "zz", "must be 64 hexadecimal digits"),
        ("files.transformer.onnx.size", -1, "size must be a whole number from 0"),
    ],
)
def test_fields_of_the_wrong_kind(copy: Path, path: str, value: object, message: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        *groups, name = path.replace("transformer.onnx", "transformer!onnx").split(".")
        for group in groups:
            manifest = manifest[group.replace("!", ".")]
        manifest[name] = value

    change(copy, edit)
    assert message in fault(copy)


def test_every_field_that_is_needed_is_missed(tiny_bundle: Path, copy: Path) -> None:
    whole = json.loads((tiny_bundle / MANIFEST_NAME).read_text())
    for group, name in [
        *((None, name) for name in ("format_version", "model", "sampler", "graphs", "tokenizers", "files")),
        *(("sampler", name) for name in whole["sampler"] if name != "reference_method"),
        *(("graphs", name) for name in GRAPHS),
        *(("tokenizers", name) for name in ("clip", "t5")),
    ]:
        manifest = json.loads(json.dumps(whole))
        del (manifest if group is None else manifest[group])[name]
        (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
        assert f"{name} is missing" in fault(copy)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data(), value=VALUES)
def test_any_value_anywhere_is_read_or_refused(
    copy: Path, tiny_bundle: Path, data: st.DataObject, value: Any
) -> None:
    """Nothing but KontextError comes out, whatever stands in a field."""
    manifest = json.loads((tiny_bundle / MANIFEST_NAME).read_text())
    node = manifest
    while True:
        name = data.draw(st.sampled_from(sorted(node)))
        if isinstance(node[name], dict) and node[name] and data.draw(st.booleans()):
            node = node[name]
            continue
        break
    node[name] = value
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8", errors="surrogatepass")
    with suppress(KontextError):
        Bundle.open(copy)


def test_a_manifest_from_before_the_reference_method(copy: Path) -> None:
    """It was made when every reference was placed by index."""
    assert Bundle.open(copy).sampler.reference_method == "index"
    change(copy, lambda manifest: manifest["sampler"].update(reference_method="offset"))
    assert Bundle.open(copy).sampler.reference_method == "offset"
    change(copy, lambda manifest: manifest["sampler"].pop("reference_method"))
    assert Bundle.open(copy).sampler.reference_method == "index"
