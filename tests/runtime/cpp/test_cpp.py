"""The C++ runtime against the Python one: noise, schedule, pixels, latents, pictures; the program; the C API."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kontext.runtime import OnnxRuntimeOptions, Pipeline, noise
from kontext.runtime.bundle import Bundle
from kontext.runtime.images import open_picture
from kontext.runtime.rgb import upright_rgb
from kontext.runtime.sampler import schedule
from kontext.runtime.sampler_entry import SPACINGS, TIME_SHIFTS
from kontext.runtime.tokens import positions, rope_tables

from .c_structures import CANCELLED, ERROR, OK, PROGRESS, CEditOptions, CImage, CLoadOptions

if TYPE_CHECKING:
    from .conftest import CppBuild

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "cpp.md"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.effect_mandelbrot((176, 96), (-2, -1.5, 1, 1.5), 50).save(path)
    return path


# -- numbers --


@pytest.mark.parametrize(("seed", "size"), [(0, 4096), (2**64 - 1, 1000), (7, 17), (3, 5), (12, 4000)])
def test_the_noise_is_the_same_bit_by_bit(cpp: CppBuild, seed: int, size: int) -> None:
    assert cpp.ask("noise", seed, size) == noise.randn(seed, (size,)).tobytes()


def test_the_schedule_and_the_rope_tables(cpp: CppBuild, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for steps, tokens in ((1, 64), (4, 96), (28, 4096), (50, 300)):
        assert (
            cpp.ask("times", tiny_bundle, steps, tokens) == schedule(steps, tokens, bundle.sampler).tobytes()
        )
    tables = np.frombuffer(cpp.ask("rope", tiny_bundle, 24, 6, 9, 0, 0, 0, 4, 7, 1, 3, 5), np.float32)
    transformer, origins = bundle.transformer, [(0, 0, 0), (1, 3, 5)]
    expected = rope_tables(positions(24, [(6, 9), (4, 7)], origins), transformer.axes_dim, transformer.theta)
    np.testing.assert_allclose(tables, np.concatenate([each.ravel() for each in expected]), atol=1e-6, rtol=0)


def test_every_kind_of_sigmas(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text())
    for time_shift, spacing, terminal in itertools.product(TIME_SHIFTS, SPACINGS, (None, 0.1)):
        sigmas = {"time_shift": time_shift, "shift": 2.5, "spacing": spacing, "terminal": terminal}
        manifest["sampler"]["sigmas"] = sigmas
        (folder / "manifest.json").write_text(json.dumps(manifest))
        settings = Bundle.open(folder).sampler
        assert dataclasses.asdict(settings.sigmas) == sigmas
        for steps, tokens in ((1, 64), (4, 96), (28, 4096)):
            times = np.frombuffer(cpp.ask("times", folder, steps, tokens), np.float32)
            # pow and exp of two C libraries may differ in their last bit, in double precision
            np.testing.assert_allclose(times, schedule(steps, tokens, settings), atol=6e-8, rtol=0)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 5000])
def test_digests(cpp: CppBuild, sanitized: CppBuild, size: int) -> None:
    """OpenSSL's and our own."""
    data = bytes(i * 7 % 251 for i in range(size))
    for build in (cpp, sanitized):
        assert build.ask("digest", given=data).decode().strip() == hashlib.sha256(data).hexdigest()


# -- pictures, against Pillow --


def cpp_pixels(cpp: CppBuild, path: Path, *size: int) -> np.ndarray:
    header, _, data = cpp.ask("pixels", path, *size).partition(b"\n")
    width, height = map(int, header.split())
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def need_webp(build: CppBuild) -> None:
    cache = (build.prefix / "build" / "CMakeCache.txt").read_text()
    if not re.search(r"^WEBP_LIBRARY:\w+=/", cache, re.MULTILINE):
        pytest.skip("libwebp's headers are not there: apt-get install libwebp-dev")


def drawing(width: int, height: int) -> Image.Image:
    rows = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), np.uint8)
    rows[: height // 2] = np.asarray(Image.linear_gradient("L").resize((width, height)))[
        : height // 2, :, None
    ]
    rows[:, : width // 3, 3] = 255
    rows[:, -width // 3 :, 3] = 0
    return Image.fromarray(rows, "RGBA")


def grey16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 251)


@pytest.mark.parametrize(
    ("name", "convert", "options"),
    [
        ("rgb.png", lambda image: image.convert("RGB"), {}),
        ("rgba.png", lambda image: image, {}),
        ("grey.png", lambda image: image.convert("L"), {}),
        ("grey-alpha.png", lambda image: image.convert("LA"), {}),
        ("grey-16.png", grey16, {}),
        ("one-bit.png", lambda image: image.convert("1"), {}),
        ("palette.png", lambda image: image.convert("RGB").quantize(31), {}),
        ("palette-clear.png", lambda image: image.convert("RGB").quantize(7), {"transparency": 3}),
        ("rgb-clear.png", lambda image: image.convert("RGB"), {"transparency": (0, 0, 0)}),
        ("grey-clear.png", lambda image: image.convert("L"), {"transparency": 9}),
        ("colour.jpg", lambda image: image.convert("RGB"), {"quality": 80}),
        ("sharp.jpeg", lambda image: image.convert("RGB"), {"quality": 95, "subsampling": 0}),
        ("progressive.jpg", lambda image: image.convert("RGB"), {"progressive": True}),
        ("grey.jpg", lambda image: image.convert("L"), {}),
        ("cmyk.jpg", lambda image: image.convert("RGB").convert("CMYK"), {}),
        ("lossy.webp", lambda image: image.convert("RGB"), {"quality": 70}),
        ("lossless.webp", lambda image: image.convert("RGB"), {"lossless": True}),
        ("clear.webp", lambda image: image, {"lossless": True}),
    ],
)
def test_files_are_read_as_pillow_reads_them(
    cpp: CppBuild,
    tmp_path: Path,
    name: str,
    convert: Callable[[Image.Image], Image.Image],
    options: dict[str, Any],
) -> None:
    if name.endswith(".webp"):
        need_webp(cpp)
    convert(drawing(67, 45)).save(tmp_path / name, **options)
    expected = np.asarray(upright_rgb(open_picture(tmp_path / name)))
    np.testing.assert_array_equal(cpp_pixels(cpp, tmp_path / name), expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(cpp: CppBuild, tmp_path: Path, suffix: str, orientation: int) -> None:
    if suffix == "webp":
        need_webp(cpp)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    drawing(37, 22).convert("RGB").save(path, exif=exif)
    np.testing.assert_array_equal(cpp_pixels(cpp, path), np.asarray(upright_rgb(open_picture(path))))


def test_resizing_is_pillows_pixel_by_pixel(cpp: CppBuild, tmp_path: Path) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(*[st.integers(1, 150)] * 4)
    def check(width: int, height: int, to_width: int, to_height: int) -> None:
        path = tmp_path / "sized.png"
        picture = drawing(width, height).convert("RGB")
        picture.save(path, compress_level=1)
        expected = picture.resize((to_width, to_height), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(cpp_pixels(cpp, path, to_width, to_height), np.asarray(expected))

    check()


# -- edits, against the Python pipeline --


@pytest.mark.parametrize(
    ("precision", "references", "size", "method"),
    [
        *(
            (precision, references, size, "index")
            for precision in ("fp32", "fp8", "int4")
            for references, size in ((0, (96, 160)), (1, None), (2, (144, 112)))
        ),
        ("fp32", 1, (96, 64), "index"),
        ("fp32", 3, None, "offset"),
        ("fp32", 2, None, "stitch"),
    ],
)
@pytest.mark.filterwarnings("ignore:the output of:UserWarning")
def test_latents_and_pictures_are_those_of_python(
    cpp: CppBuild,
    embedded_bundle: Callable[[str], Path],
    tmp_path: Path,
    precision: str,
    references: int,
    size: Any,
    method: str,
) -> None:
    bundle = embedded_bundle(precision)
    paths = []
    for index, extent in enumerate([(200, 120), (90, 131), (120, 110)][:references]):
        paths.append(tmp_path / f"in-{index}.png")
        drawing(*extent).save(paths[-1])
    prompt, seed, steps = "make the red circle blue, café 日本", 5, 3
    taken: list[np.ndarray] = []
    pipe = Pipeline.load(bundle, device="cpu", backend=OnnxRuntimeOptions(threads=1))
    expected = pipe.edit(
        [open_picture(path) for path in paths], prompt, steps=steps, seed=seed, size=size, reference_method=method,
        callback=lambda step, total, latents: taken.append(latents.copy()),
    )  # fmt: skip
    text = f"{expected.width}x{expected.height}"
    answer = cpp.ask("latents", bundle, steps, seed, text if size else "", method, prompt, *paths)
    latents = np.frombuffer(answer, np.float32)
    np.testing.assert_allclose(latents, taken[-1].ravel(), atol=1e-4, rtol=0)
    output = tmp_path / "out.png"
    words = [
        cpp.edit,
        bundle,
        "--prompt",
        prompt,
        "--seed",
        seed,
        f"--steps={steps}",
        "-o",
        output,
        "--threads",
        1,
        "--device",
        "cpu",
        "--reference-method",
        method,
    ]
    words += [word for path in paths for word in ("-i", path)] + (["--size", text] if size else [])
    subprocess.run(list(map(str, words)), check=True, capture_output=True, timeout=300)
    with Image.open(output) as image:
        difference = np.asarray(image, np.float64) - np.asarray(expected, np.float64)
    assert image.size == expected.size
    assert np.mean(difference**2) <= 255**2 * 10**-5.0  # 50 dB


def test_a_bundle_over_linked_weights(cpp: CppBuild, tiny_bundle: Path, linked_bundle: Path) -> None:
    answers = [
        cpp.ask("latents", each, 1, 3, "64x96", "index", "make it blue")
        for each in (tiny_bundle, linked_bundle)
    ]
    ours, linked = (np.frombuffer(answer, np.float32) for answer in answers)
    np.testing.assert_allclose(linked, ours, atol=1e-5)


# -- the program --


def program(build: CppBuild, bundle: Path, output: Path, *more: object) -> subprocess.CompletedProcess[str]:
    words = [build.edit, bundle, "--prompt", "make it blue", "--steps", "1", "-o", output, *more]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_help_and_a_long_prompt(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run([cpp.edit, "--help"], capture_output=True, text=True, check=True)
    assert "--guidance" in done.stdout
    done = program(cpp, tiny_bundle, tmp_path / "out.png", "--verify", "--prompt", "x y" * 40_000)
    assert done.returncode == 0
    wrote = f"wrote {tmp_path / 'out.png'} (128x128)\n"
    assert done.stdout == f"running with ONNX Runtime on the CPU\n{wrote}"
    lines = done.stderr.splitlines()
    assert len(lines) == 2  # one for each encoder
    assert all(line.startswith("warning: the prompt is longer than") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_version(cpp: CppBuild) -> None:
    done = subprocess.run([cpp.edit, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"kontext-edit-cpp \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more"),
        (["--steps", "four"], "invalid int value: 'four'"),
        (["--guidance", "nan"], "guidance must be a number from -1000 to 1000"),
        (["--guidance", "much"], "invalid float value"),
        (["--seed", "-1"], "a seed is a whole number"),
        (["--seed", "18446744073709551616"], "a seed is a whole number"),
        (["--size", "100x128"], "must be multiples of 16; the nearest is 96x128"),
        (["--size", "0x0"], "size 0x0: width and height must be above 0"),
        (["--size", "1024"], "--size takes WIDTHxHEIGHT"),
        (["--size", "16x-16"], "size 16x-16: width and height must be above 0"),
        (["--reference-size", "large"], "must be auto, preferred, output or WIDTHxHEIGHT, not 'large'"),
        (["--reference-size", "100x128"], "reference size 100x128: both sides must be multiples of 16"),
        (["--size", "160000x160000"], "times as large"),
        (["--reference-method", "beside"], "must be index, offset or stitch, not 'beside'"),
        (["--threads", "0"], "--threads must be 1 or more"),
        (["--sharpness", "3"], "unrecognized arguments: --sharpness"),
        (["stray"], "unrecognized arguments: stray"),
        (["--size"], "expected one argument"),
        (["-i", "nowhere.png"], "nowhere.png does not exist"),
        (["-i", __file__], "is not a PNG, JPEG or WebP picture"),
        (["-i", "."], "is a folder"),
        (["-i", "/dev/zero"], "/dev/zero is not a regular file"),
        (["-o", "/nowhere/out.png"], "/nowhere does not exist: make the folder first"),
        (["-o", "out.webp"], "cannot write pictures of type '.webp': use .png or .jpg"),
        (["-o", "."], "cannot write pictures of type"),
        (["--prompt", b"a\xff"], "not valid Unicode"),
    ],
)
def test_what_can_go_wrong_is_one_line(
    cpp: CppBuild,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(each) if isinstance(each, str) else each.decode(errors="surrogateescape") for each in more]
    assert message in refused(program(cpp, tiny_bundle, tmp_path / "out.png", *words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("compute", "layers", "message"),
    [
        ("bf16", {}, "ONNX Runtime has no kernels for bf16 on a CPU: "),
        ("fp32", {"transformer": {"a": "fp8", "b": {"format": "nvfp4", "rank": 8}}}, "no kernels for NVFP4"),
        ("fp32", {"transformer": {"a": "nvfp4"}}, "no kernels for NVFP4"),
        ("fp16", {"transformer": {"a": "int4"}}, ""),
        ("fp32", ["nvfp4"], ""),
        (["bf16"], {"transformer": 3}, ""),
    ],
)
def test_what_has_no_kernels_is_refused_before_loading(
    cpp: CppBuild, tiny_bundle: Path, tmp_path: Path, compute: Any, layers: Any, message: str
) -> None:
    """As Python refuses it; a manifest that says nothing sensible of formats is left to ONNX Runtime."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "noted")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["precision"]["networks"]["transformer"] = compute
    manifest["precision"]["layers"] = layers
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = program(cpp, bundle, tmp_path / "out.png", "--device", "cpu")
    if message:
        assert message in refused(done)
    else:
        assert done.returncode == 0


def test_a_nan_among_the_decoders_weights(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    """Not a garbage picture, as Python says too."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "damaged")
    file = bundle / "weights" / "vae_decoder.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + np.array([np.nan], "<f4").tobytes())
    message = refused(program(cpp, bundle, tmp_path / "out.png"))
    assert "the output of vae_decoder is not finite" in message
    assert not (tmp_path / "out.png").exists()


def test_required_arguments_and_folders_that_are_no_bundle(cpp: CppBuild, tmp_path: Path) -> None:
    assert "is not a bundle" in refused(program(cpp, tmp_path, tmp_path / "out.png"))
    done = subprocess.run([cpp.edit], capture_output=True, text=True)
    assert "required: BUNDLE" in refused(done)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_leave_nothing(
    cpp: CppBuild, tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output, preview = tmp_path / "out.png", tmp_path / "preview.png"
    for path in (output, preview):
        path.write_bytes(b"an older picture")
    words = [cpp.edit, tiny_bundle, "--prompt", "x", "--size", "512x512", "--steps", "100000"]
    words += ["-o", output, "--preview", preview]
    process = subprocess.Popen(
        list(map(str, words)), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert errors == "\ninterrupted\n"
    assert process.returncode == 128 + number
    assert output.read_bytes() == b"an older picture"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "preview.png"]


# -- bad input, under the sanitizers --


def png(width: int, height: int) -> bytes:
    """A PNG file's header that promises a picture of that size."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def scans(count: int) -> bytes:
    """A JPEG file with that many scans."""
    file = io.BytesIO()
    drawing(40, 30).convert("RGB").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - 10) + data[-2:]


def test_pictures_of_all_scans_and_of_many_pixels_are_those_of_python(cpp: CppBuild, tmp_path: Path) -> None:
    """From 24 million pixels on both decode a half of the sides."""
    (tmp_path / "scans.jpg").write_bytes(scans(64))
    drawing(60, 45).convert("RGB").resize((6001, 4003)).save(tmp_path / "large.jpg", quality=90)
    for name in ("scans.jpg", "large.jpg"):
        ours = cpp_pixels(cpp, tmp_path / name)
        expected = np.asarray(upright_rgb(open_picture(tmp_path / name)))
        np.testing.assert_array_equal(ours, expected)
    assert expected.shape == (2002, 3001, 3)


def test_an_edit_under_the_sanitizers(
    sanitized: CppBuild, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    more = [
        "-i",
        picture,
        "--image",
        picture,
        "--verify",
        "--prompt",
        "emoji 👩‍👩‍👧 🇩🇪, 画像を赤くする हिन्दी",
    ]
    done = program(sanitized, tiny_bundle, tmp_path / "out.png", *more)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (176, 96)
    for method in ("offset", "stitch"):
        more = ["-i", picture, "-i", picture, "--size", "64x48", "--reference-method", method]
        done = program(sanitized, tiny_bundle, tmp_path / "out.png", *more)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning: ") == 1  # the picture's aspect, or the canvas's
    Image.effect_mandelbrot((50, 30), (-2, -1, 1, 1), 50).save(tmp_path / "mask.png")
    more = [
        "-i",
        picture,
        "--mask",
        tmp_path / "mask.png",
        "--mask-blur",
        "40",
        "--paste-back",
        "--strength",
        "0.9",
    ]
    more += ["--negative-prompt", "a star", "--true-cfg", "2", "--cfg-until", "0.5", "--size", "64x48"]
    done = program(sanitized, tiny_bundle, tmp_path / "out.png", *more)
    assert done.returncode == 0, done.stderr


def test_damaged_pictures_under_the_sanitizers(
    sanitized: CppBuild, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    jpeg = tmp_path / "in.jpg"
    Image.open(picture).convert("RGB").save(jpeg)
    cases = {
        "bomb.png": (png(60_000, 60_000), "has more than 100 million pixels"),
        "line.png": (png(1, 100_000_000), "is 1x100000000: sides of at most 32768 pixels are read"),
        "scans.jpg": (scans(64 + 1), "is a JPEG file of 65 scans; at most 64 are read: save it again"),
        "short.png": (png(100, 100), "cannot be read as a picture"),
        "cut.png": (picture.read_bytes()[:-400], "cannot be read as a picture"),
        "head.png": (picture.read_bytes()[:20], "cannot be read as a picture"),
        "flipped.png": (picture.read_bytes().replace(b"IDAT", b"IDAU"), "cannot be read as a picture"),
        "cut.jpg": (jpeg.read_bytes()[: jpeg.stat().st_size // 2], "cannot be read as a picture"),
        "head.jpg": (jpeg.read_bytes()[:30], "cannot be read as a picture"),
        "empty.png": (b"", "is not a PNG, JPEG or WebP picture"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        assert message in refused(
            program(sanitized, tiny_bundle, tmp_path / "out.png", "-i", tmp_path / name)
        ), name
    assert not (tmp_path / "out.png").exists()


def edited(**changes: Any) -> Callable[[Path], None]:
    """Sets fields of the manifest, named a__b__c; ... deletes one."""

    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            group = manifest
            for parent in parents:
                group = group[parent]
            if value is ...:
                del group[last]
            else:
                group[last] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def tokenizer(name: str, change: Callable[[dict[str, Any]], object] | str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "tokenizers" / f"{name}.json"
        if isinstance(change, str):
            path.write_text(change)
        else:
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        edited(files=files_of(folder))(folder)

    return damage


def files_of(folder: Path) -> dict[str, Any]:
    """The entries of a bundle's files as they are now, for a damage that digests do not show."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    contents = {name: (folder / name).read_bytes() for name in files}
    return {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }


def damaged_graph(folder: Path) -> None:
    (folder / "transformer.onnx").write_bytes(b"nonsense")
    edited(files=files_of(folder))(folder)


def irregular(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Makes something else of the manifest."""

    def damage(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        make(folder / "manifest.json")

    return damage


def endless_loop(folder: Path) -> None:
    from onnx import helper, load, save

    model = load(folder / "text_encoder.onnx", load_external_data=False)
    model.graph.node.insert(
        0, helper.make_node("Loop", ["", "go"], [], body=helper.make_graph([], "g", [], []))
    )
    save(model, folder / "text_encoder.onnx")
    edited(files=files_of(folder))(folder)


END = {"SpecialToken": {"id": "</s>", "type_id": 0}}

SIGMAS = {"time_shift": "constant", "shift": 2.5, "spacing": "uniform", "terminal": None}

DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "manifest.json").write_text("{"), "is not JSON"),
    (lambda folder: (folder / "manifest.json").write_bytes(b"\xff{}"), "is not JSON"),
    (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "is not JSON"),
    (lambda folder: (folder / "manifest.json").write_text("[]"), "is not a JSON object"),
    (lambda folder: (folder / "manifest.json").write_text("{}"), "is not a bundle"),
    (lambda folder: (folder / "manifest.json").unlink(), "is not a bundle"),
    (edited(format_version=3), "update"),
    (edited(format_version="1"), "format_version must be a whole number"),
    (edited(graphs__transformer=...), "graphs.transformer is missing"),
    (edited(graphs__transformer__file="../x.onnx"), "is not a path inside the bundle"),
    (edited(graphs__transformer__file="x.onnx"), "not among the bundle's files"),
    (edited(model__transformer__head_dim=-4), "head_dim must be a whole number"),
    (edited(model__transformer__axes_dim=[2, 2]), "must be 3 whole numbers from 2 to 4096"),
    (edited(model__transformer__in_channels=63), "2x2 latents of 16 channels make 64"),
    (edited(model__autoencoder__downscale=7), "must be a multiple of 14"),
    (edited(sampler__preferred_sizes=[]), "must be a list of at most 1000 sizes"),
    (edited(sampler__guidance="much"), "must be a number"),
    (edited(sampler__sigmas={}), "time_shift is missing"),
    (edited(preview=[]), "preview must be an object"),
    (edited(preview={"factors": [[0, 0, 0]]}), "preview.factors must be a list of 16 colours"),
    (
        edited(preview={"factors": [[0, 0, "x"]] * 16}),
        "preview.factors each must be 3 numbers from -1000 to 1000",
    ),
    (edited(preview={"factors": [[0, 0, 0]] * 16, "bias": [0, 0, 2000]}), "preview.bias must be 3 numbers"),
    (
        edited(sampler__sigmas=SIGMAS | {"spacing": "even"}),
        "must be one of uniform, karras, exponential, beta",
    ),
    (edited(sampler__sigmas=SIGMAS | {"shift": -1}), "shift must be a number from 0 to 1000"),
    (edited(sampler__sigmas=SIGMAS | {"shift": 0}), "shift must be above 0"),
    (edited(sampler__sigmas=SIGMAS | {"terminal": 1}), "terminal must be between 0 and 1"),
    (edited(tokenizers__clip__max_length=0), "must be a whole number from 2 to 4096"),
    (lambda folder: (folder / "transformer.onnx").unlink(), "is missing"),
    (lambda folder: (folder / "transformer.onnx").write_bytes(b"x"), "the bundle is damaged"),
    (damaged_graph, "is not a graph of this format: it is damaged"),
    (tokenizer("clip", "{}"), "is not a tokenizer"),
    (tokenizer("clip", "nonsense"), "is not JSON"),
    (
        tokenizer("clip", lambda content: content["model"].update(type="WordPiece")),
        "does not support the model WordPiece",
    ),
    (tokenizer("clip", lambda content: content["model"].update(merges=[["qq", "zz"]])), "is not a tokenizer"),
    (tokenizer("t5", lambda content: content["model"].update(unk_id=10**6)), "is not a tokenizer"),
    (
        tokenizer("t5", lambda content: content.update(normalizer={"type": "BertNormalizer"})),
        "does not support the normalizer",
    ),
    (
        tokenizer(
            "t5",
            lambda content: content.update(
                normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
            ),
        ),
        "precompiled_charsmap is damaged",
    ),
    (
        edited(model__name="\x1b[31mEVIL\nLINE2"),
        r'the text "\u001b[31mEVIL\nLINE2" has the control character U+001B',
    ),
    (edited(**{"EVIL\u202e": []}), r'the text "EVIL\u202e" has the control character U+202E'),
    (irregular(os.mkfifo), "manifest.json is not a regular file"),
    (irregular(lambda path: path.symlink_to("/dev/zero")), "manifest.json is not a regular file"),
    (irregular(lambda path: path.write_text("[" + "[]," * 1_000_000 + "[]]")), "more than 1000000 values"),
    (edited(sampler__preferred_sizes=[[1 << 40, 1 << 40]]), "each must be 2 whole numbers from 1 to 4096"),
    (edited(sampler__steps=10**9), "steps must be a whole number from 1 to 1000"),
    (edited(model__autoencoder__downscale=1 << 30), "downscale must be a whole number from 1 to 256"),
    (edited(tokenizers__t5__max_length=1 << 62), "max_length must be a whole number from 2 to 4096"),
    (edited(tokenizers__t5__max_length=1 << 65), "max_length must be a whole number from 2 to 4096"),
    (edited(tokenizers__t5__pad_id=1 << 70), "pad_id must be a whole number from 0 to"),
    (
        edited(sampler__max_shift=20, sampler__base_shift=-20, sampler__max_tokens=257),
        "the time shift for this size",
    ),
    (
        tokenizer(
            "t5",
            lambda content: content.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}] * 5,
                }
            ),
        ),
        "could make a prompt 4096 times as long",
    ),
    (
        tokenizer("t5", lambda content: content["post_processor"]["single"].extend([END] * 600)),
        "special tokens leave no room",
    ),
    (endless_loop, "it has the operator 'Loop'"),
]


def test_damaged_bundles_under_the_sanitizers(sanitized: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    for index, (damage, message) in enumerate(DAMAGE):
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / str(index)))
        damage(folder)
        assert message in refused(program(sanitized, folder, tmp_path / "out.png")), message
        shutil.rmtree(folder)


def test_only_safetensors_files_are_linked(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    """Whatever a manifest says of a file whose first 8 bytes are no length of a header that it has."""
    folder, other = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")), tmp_path / "other"
    other.write_bytes(b"root:x:0:0:root:/root:/bin/bash\n")
    entry = {
        "path": str(other),
        "size": other.stat().st_size,
        "header_sha256": hashlib.sha256(b"").hexdigest(),
    }
    words = [folder, tmp_path / "out.png", "--allow-links"]
    edited(links={"links/other": entry})(folder)
    assert f"{other} is not the file that" in refused(program(cpp, *words))
    other.write_bytes((100_000_001).to_bytes(8, "little") + bytes(64))  # beyond the limit of a header
    edited(links={"links/other": {**entry, "size": 72}})(folder)
    assert f"{other} is not the file that" in refused(program(cpp, *words))
    os.mkfifo(tmp_path / "pipe")
    edited(links={"links/other": {**entry, "path": str(tmp_path / "pipe")}})(folder)
    assert "pipe is not a regular file, and the bundle takes weights from it" in refused(program(cpp, *words))
    edited(links={"links/other": {**entry, "path": str(tmp_path / "nowhere")}})(folder)
    assert "nowhere does not exist, and the bundle takes weights from it" in refused(program(cpp, *words))


def test_links_hold_for_the_exporter_and_those_who_allow_them(
    cpp: CppBuild, linked_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.png"
    assert program(cpp, linked_bundle, output, "--verify").returncode == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of somebody else"))
    assert "you have not exported it on this machine" in refused(program(cpp, linked_bundle, output))
    assert program(cpp, linked_bundle, output, "--allow-links").returncode == 0


def test_verify_reads_linked_files_whole(
    cpp: CppBuild, tiny_checkpoint: Path, tiny_bundle: Path, untraced: Any, tmp_path: Path
) -> None:
    from kontext.export.cli.main import main

    model, folder = shutil.copytree(tiny_checkpoint, tmp_path / "model"), tmp_path / "linked"
    with untraced(tiny_bundle):
        assert main([str(model), "-o", str(folder), "--fp32", "--link-weights", "--quiet"]) == 0
    flip(model / "vae" / "diffusion_pytorch_model.safetensors")
    assert program(cpp, folder, tmp_path / "out.png").returncode == 0
    message = refused(program(cpp, folder, tmp_path / "out.png", "--verify"))
    assert f"has changed since {folder} was exported over it" in message
    edited(**{f"links__{name}__sha256": ... for name in Bundle.open(folder).links})(folder)
    message = refused(program(cpp, folder, tmp_path / "out.png", "--verify", "--allow-links"))
    assert "was made before whole files were recorded, export it again" in message


def test_a_tampered_file(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    flip(folder / "weights" / "vae_decoder.safetensors")
    assert program(cpp, folder, tmp_path / "out.png").returncode == 0
    for flags in (["--verify"], ["--require-digest", Bundle.open(folder).digest]):
        message = refused(program(cpp, folder, tmp_path / "out.png", *flags))
        assert "vae_decoder.safetensors is damaged: its SHA-256 is not the manifest's" in message


@pytest.mark.parametrize("name", ["transformer.onnx", "tokenizers/clip.json"])
def test_what_is_executed_is_always_compared(
    cpp: CppBuild, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    flip(folder / name)
    message = refused(program(cpp, folder, tmp_path / "out.png"))
    assert f"{name} is damaged: its SHA-256 is not the manifest's" in message


def test_the_required_bundle_and_others(
    cpp: CppBuild, c_api: ctypes.CDLL, tiny_bundle: Path, tmp_path: Path
) -> None:
    digest, other = Bundle.open(tiny_bundle).digest, "sha256:" + "0" * 64
    output = tmp_path / "out.png"
    assert program(cpp, tiny_bundle, output, "--require-digest", digest).returncode == 0
    message = refused(program(cpp, tiny_bundle, output, "--require-digest", other))
    assert f"is not the required bundle: its digest is {digest}, not {other}" in message
    for text in (digest.upper(), digest[7:], digest + "0", "sha256:"):
        assert "a digest is sha256: and 64 hexadecimal digits" in refused(
            program(cpp, tiny_bundle, output, "--require-digest", text)
        )
    pipeline = ctypes.c_void_p()
    for text, status in ((digest, OK), (other, ERROR)):
        options = CLoadOptions(require_digest=text.encode())
        arguments = (str(tiny_bundle).encode(), ctypes.byref(options), ctypes.byref(pipeline))
        assert c_api.kontext_load(*arguments) == status
        c_api.kontext_free(pipeline)


def flip(path: Path) -> None:
    """Changes the last bit of a file, in place and with its size kept."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# -- the C API, and embedding --


def test_the_c_api(c_api: ctypes.CDLL, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    pipeline, reference, result = ctypes.c_void_p(), CImage(), CImage()
    assert c_api.kontext_load(str(tmp_path).encode(), None, ctypes.byref(pipeline)) == ERROR
    assert b"is not a bundle" in c_api.kontext_error()
    assert not pipeline
    assert c_api.kontext_load(str(tiny_bundle).encode(), None, ctypes.byref(pipeline)) == OK
    assert c_api.kontext_image_read(b"nowhere.png", ctypes.byref(reference)) == ERROR
    assert c_api.kontext_image_read(str(picture).encode(), ctypes.byref(reference)) == OK
    steps: list[tuple[int, int, int]] = []

    @PROGRESS
    def progress(_user: object, step: int, total: int, _latents: object, extents: Any) -> int:
        steps.append((step, total, extents[0] * extents[1] * extents[2] * extents[3]))
        if total == 100:
            c_api.kontext_cancel(pipeline)  # as another thread would
        return int(step == 3)

    options = CEditOptions(
        references=ctypes.pointer(reference), reference_count=1, steps=2, seed=4, progress=progress
    )
    assert c_api.kontext_edit(pipeline, b"make it blue", ctypes.byref(options), ctypes.byref(result)) == OK
    assert steps == [(1, 2, 16 * 12 * 22), (2, 2, 16 * 12 * 22)]
    expected = Pipeline.load(tiny_bundle, device="cpu").edit(
        Image.open(picture), "make it blue", steps=2, seed=4
    )
    pixels = np.ctypeslib.as_array(result.rgb, (result.height, result.width, 3)).astype(int)
    assert np.abs(pixels - np.asarray(expected)).max() <= 1
    assert c_api.kontext_image_write(ctypes.byref(result), str(tmp_path / "out.png").encode()) == OK
    assert Image.open(tmp_path / "out.png").size == (176, 96)
    c_api.kontext_image_free(ctypes.byref(result))
    assert not result.rgb
    for total, last in ((8, 3), (100, 1)):  # by the callback's answer, and by kontext_cancel
        steps.clear()
        options.steps = total
        assert c_api.kontext_edit(pipeline, b"x", ctypes.byref(options), ctypes.byref(result)) == CANCELLED
        assert steps[-1][0] == last
    options.steps, options.width, options.height = 1, 100, 128
    assert c_api.kontext_edit(pipeline, b"x", ctypes.byref(options), ctypes.byref(result)) == ERROR
    assert b"must be multiples of 16; the nearest is 96x128" in c_api.kontext_error()
    options.width, options.reference_method = 128, b"beside"
    assert c_api.kontext_edit(pipeline, b"x", ctypes.byref(options), ctypes.byref(result)) == ERROR
    assert b"must be index, offset or stitch, not 'beside'" in c_api.kontext_error()
    options.reference_method, options.reference_size = b"offset", b"large"
    assert c_api.kontext_edit(pipeline, b"x", ctypes.byref(options), ctypes.byref(result)) == ERROR
    assert b"must be auto, preferred, output or WIDTHxHEIGHT" in c_api.kontext_error()
    assert c_api.kontext_edit(pipeline, None, None, ctypes.byref(result)) == ERROR
    c_api.kontext_image_free(ctypes.byref(reference))
    c_api.kontext_free(pipeline)
    c_api.kontext_free(None)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def test_the_documents_examples_are_built_and_run(
    cpp: CppBuild, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    (lists,), (main,), (c_main,) = blocks("cmake"), blocks("cpp"), blocks("c")
    assert len(main.splitlines()) <= 20
    (tmp_path / "CMakeLists.txt").write_text(lists)
    (tmp_path / "main.cpp").write_text(main)
    (tmp_path / "main.c").write_text(c_main)
    for words in (
        ["-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={cpp.prefix}"],
        ["--build", tmp_path / "build"],
    ):
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("my-editor", "my-c-editor"):
        output = tmp_path / f"{name}.png"
        words = [tmp_path / "build" / name, tiny_bundle, picture, "make it blue", output]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Image.open(output).size == (176, 96)
        done = subprocess.run(
            [str(words[0]), "nowhere", *map(str, words[2:])], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "nowhere does not exist" in done.stderr
