"""LoRAs at run time in C++ and C, beside Python's."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.bundle import Bundle
from kontext.runtime.cli import main
from kontext.runtime.lora_slots import INPUTS

from ..test_lora import DAMAGE, SLOTS, tensors, write
from .c_structures import ERROR, OK, CEditOptions, CImage, CLora

if TYPE_CHECKING:
    from .conftest import CppBuild


def ready(path: Path, bundle: Path, rank: int, *graphs: str) -> Path:
    """A LoRA that changes these graphs much."""
    slots = Bundle.open(bundle).lora_slots
    assert slots is not None
    source = np.random.default_rng(rank)
    held = {
        f"{graph}.{name}": source.standard_normal((rows, rank), np.float32) * 0.1
        for graph in graphs
        for name, rows in zip(INPUTS, slots.rows[graph], strict=True)
    }
    return write(path, held, layout=slots.layout)


@pytest.fixture
def files(slots_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with two LoRAs and a picture in which the test runs."""
    monkeypatch.chdir(tmp_path)
    ready(tmp_path / "style.safetensors", slots_bundle, 3, "transformer", "modulation")
    ready(tmp_path / "a:1.safetensors", slots_bundle, 5, "transformer", "text_encoder")
    Image.effect_mandelbrot((128, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB").save("in.png")
    return tmp_path


STYLES = (
    ["--lora", "style.safetensors"],
    ["--lora", "style.safetensors:-0.7", "--lora", "a:1.safetensors"],
    ["--lora", "a:1.safetensors:2e-1", "--lora", "style.safetensors:1", "--num-images", "2"],
)


@pytest.mark.parametrize("words", STYLES, ids=["one", "two", "the other order"])
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_pictures_are_pythons(
    cpp: CppBuild, slots_bundle: Path, files: Path, words: list[str], device: str
) -> None:
    if device == "openvino":
        pytest.importorskip("openvino")
    common = ["-i", "in.png", "--prompt", "make it blue", "--steps", "3", "--device", device, "--quiet"]
    guided = ["--negative-prompt", "a star", "--true-cfg", "2", "--cfg-until", "0.5"]
    assert main([str(slots_bundle), *common, *guided, "-o", "plain.png"]) == 0
    assert main([str(slots_bundle), *common, *guided, *words, "-o", "python.png"]) == 0
    done = cpp.run(slots_bundle, *common, *guided, *words, "-o", "cpp.png")
    assert done.returncode == 0, done.stderr
    number = "-1" if "--num-images" in words else ""
    with Image.open(f"cpp{number}.png") as ours, Image.open(f"python{number}.png") as theirs:
        assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
        changed = np.asarray(theirs, np.int16) - np.asarray(Image.open("plain.png"), np.int16)
    assert np.abs(changed).max() > 50


def test_without_loras_it_is_a_bundle_without_slots(
    cpp: CppBuild, slots_bundle: Path, tiny_bundle: Path, files: Path
) -> None:
    common = ["-i", "in.png", "--prompt", "x", "--steps", "2", "--device", "cpu"]
    for bundle, name in ((slots_bundle, "a.png"), (tiny_bundle, "b.png")):
        assert cpp.run(bundle, *common, "-o", name).returncode == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_in_c_they_are_loaded_and_per_edit(c_api: ctypes.CDLL, slots_bundle: Path, files: Path) -> None:
    pipeline = ctypes.c_void_p()
    assert c_api.kontext_load(str(slots_bundle).encode(), None, ctypes.byref(pipeline)) == OK
    style, other = CLora(b"style.safetensors", 0.5), CLora(b"a:1.safetensors", 1)
    python = Pipeline.load(slots_bundle, device="cpu", backend="onnxruntime")

    def check(expected: list[tuple[str, float]], **more: object) -> None:
        image = CImage()
        options = CEditOptions(steps=2, width=64, height=64, seed=9, **more)
        assert c_api.kontext_edit(pipeline, b"x", ctypes.byref(options), ctypes.byref(image)) == OK
        pixels = np.ctypeslib.as_array(image.rgb, (64, 64, 3)).astype(int)
        picture = python.edit(None, "x", steps=2, size=(64, 64), seed=9, loras=expected)
        assert np.abs(pixels - np.asarray(picture)).max() <= 1
        c_api.kontext_image_free(ctypes.byref(image))

    check([])
    assert c_api.kontext_load_loras(pipeline, ctypes.byref(style), ctypes.c_size_t(1)) == OK
    check([("style.safetensors", 0.5)])
    check([("a:1.safetensors", 1)], loras=ctypes.pointer(other), lora_count=1)
    check([("style.safetensors", 0.5)])
    check([], loras=ctypes.pointer(other), lora_count=0)
    # A file that was written anew is read anew; one that cannot be loaded leaves what was.
    shutil.copy("a:1.safetensors", "style.safetensors")
    assert c_api.kontext_load_loras(pipeline, ctypes.byref(style), ctypes.c_size_t(1)) == OK
    check([("a:1.safetensors", 0.5)])
    missing = CLora(b"no.safetensors", 1)
    assert c_api.kontext_load_loras(pipeline, ctypes.byref(missing), ctypes.c_size_t(1)) == ERROR
    assert c_api.kontext_error() == b"no.safetensors is missing"
    check([("a:1.safetensors", 0.5)])
    assert c_api.kontext_load_loras(pipeline, None, ctypes.c_size_t(0)) == OK
    check([])
    assert c_api.kontext_load_loras(pipeline, None, ctypes.c_size_t(1)) == ERROR
    assert c_api.kontext_load_loras(pipeline, ctypes.byref(CLora()), ctypes.c_size_t(1)) == ERROR
    assert c_api.kontext_error() == b"path is NULL"
    c_api.kontext_free(pipeline)


@pytest.fixture
def small(slots_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose manifest has the slots of `test_lora`, which its graphs have not."""
    folder = Path(shutil.copytree(slots_bundle, tmp_path / "small"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["lora_slots"] = dataclasses.asdict(SLOTS)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def both_refuse(cpp: CppBuild, bundle: Path, *words: str) -> str:
    """The message of both programs, which print the same."""
    said = cpp.refuse(bundle, "-p", "x", "-o", "out.png", "--steps", "1", "--device", "cpu", *words)
    pipeline = Pipeline.load(bundle, device="cpu", backend="onnxruntime")
    with pytest.raises(KontextError) as caught:
        pipeline.load_loras([(Path(word), 1.0) for word in words if word != "--lora"])
    assert said == f"error: {caught.value}\n"
    return said


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(cpp: CppBuild, small: Path, tmp_path: Path, damage: str) -> None:
    make, _ = DAMAGE[damage]
    both_refuse(cpp, small, "--lora", str(make(tmp_path / "a.safetensors")))


def header(text: str, rest: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + rest


def entry(shape: object, offsets: object, dtype: object = "F32") -> bytes:
    return header(json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}))


HEADERS = {
    "empty": b"",
    "short": b"\x02\0\0",
    "too long": (1 << 40).to_bytes(8, "little"),
    "cut": (50).to_bytes(8, "little") + b"{}",
    "a list": header("[]"),
    "a name twice": header('{"__metadata__": {"a": "1", "a": "2"}}'),
    "no object": header('{"x": 3}'),
    "no dtype": header('{"x": {"shape": [0], "data_offsets": [0, 0]}}'),
    "a number as dtype": entry([0], [0, 0], 3),
    "an unknown dtype": entry([0], [0, 0], "F5"),
    "a negative length": entry([-1], [0, 0]),
    "a fraction": entry([1.5], [0, 6]),
    "a boolean": entry([True], [0, 4]) + bytes(4),
    "a length beyond 64 bits": entry([1 << 80], [0, 0]),
    "a product beyond 64 bits": entry([1 << 40, 1 << 40], [0, 0]),
    "an empty tensor of huge strides": entry([0, 1 << 40, 1 << 40], [0, 0]),
    "65 dimensions": entry([1] * 65, [0, 4]) + bytes(4),
    "another size": entry([2], [0, 4]) + bytes(4),
    "half a byte": entry([1], [0, 0], "F4"),
    "offsets in the wrong order": entry([0], [4, 0]),
    "three offsets": entry([1], [0, 4, 8]) + bytes(4),
    "a gap": entry([1], [4, 8]) + bytes(8),
    "missing bytes": entry([4], [0, 16]) + bytes(8),
    "more bytes": entry([1], [0, 4]) + bytes(8),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_headers(cpp: CppBuild, small: Path, tmp_path: Path, name: str) -> None:
    (path := tmp_path / "a.safetensors").write_bytes(HEADERS[name])
    assert "a.safetensors" in both_refuse(cpp, small, "--lora", str(path))


def test_ranks_values_and_kinds_of_files(
    cpp: CppBuild, small: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    for rank in (2, 3):
        write(tmp_path / f"{rank}.safetensors", tensors(rank))
    words = [word for rank in (2, 3) for word in ("--lora", str(tmp_path / f"{rank}.safetensors"))]
    assert "2.safetensors (2) and 3.safetensors (3) need 5" in both_refuse(cpp, small, *words)
    assert "takes no LoRAs" in both_refuse(cpp, tiny_bundle, *words)
    held = tensors()
    held["transformer.lora_down"][5, 1] = np.inf
    write(tmp_path / "inf.safetensors", held)
    assert "holds NaN or infinity" in both_refuse(cpp, small, "--lora", str(tmp_path / "inf.safetensors"))
    assert "Is a directory" in both_refuse(cpp, small, "--lora", str(tmp_path))
    assert "is not a regular file" in both_refuse(cpp, small, "--lora", "/dev/null")
    save_file({"lora_A.weight": np.zeros(3, np.float32)}, tmp_path / "raw.safetensors")
    said = both_refuse(cpp, small, "--lora", str(tmp_path / "raw.safetensors"))
    assert "is not ready for bundles: `kontext-export lora" in said


@pytest.mark.parametrize(
    "flag",
    [
        "",
        ":1",
        "x:",
        "x:y",
        "x:nan",
        "x:inf",
        "x:1e39",
        "x:1e999",
        "x:0x1p3",
        "x:-1001",
        "x:0.5.safetensors",
        "C:\\x.PT",
    ],
)
def test_flags(
    cpp: CppBuild,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-p", "x", "-o", "out.png", "--device", "cpu", "--lora", flag]
    said = cpp.refuse(small, *words)
    assert main([str(small), *words]) == 2
    assert said == capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_rank": 0}, "lora_slots.max_rank must be a whole number from 1 to 1024, not 0"),
        ({"rows": {"transformer": [6]}}, "lora_slots.rows.transformer must be 2 whole numbers"),
        ({"rows": {"transformer": [0, 3]}}, "must be 2 whole numbers from 1 to 67108864"),
        ({"rows": {"transformer": [6, 1 << 27]}}, "lora_slots.rows.transformer must be 2 whole numbers"),
        ({"rows": {"transformer": [6, 1.0]}}, "lora_slots.rows.transformer must be 2 whole numbers"),
        ({"rows": {"other": [6, 8]}}, "lora_slots.rows.other is not one of the bundle's graphs"),
        ({"rows": []}, "lora_slots.rows must be an object"),
        ({"layout": 3}, "lora_slots.layout must be a non-empty string"),
    ],
)
def test_damaged_slots(cpp: CppBuild, small: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["lora_slots"] |= change
    (small / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(KontextError, match=message.replace(".", r"\.")) as caught:
        Bundle.open(small)
    assert cpp.refuse(small, "-p", "x", "-o", "out.png") == f"error: {caught.value}\n"
