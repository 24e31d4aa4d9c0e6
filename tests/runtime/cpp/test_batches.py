"""Several pictures at once in C++ and C, content filters, and JPEG files, beside Python's."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from kontext.runtime import OnnxRuntimeOptions, Pipeline

from .c_structures import (
    CANCELLED,
    ERROR,
    FOUND,
    INPUT_FILTER,
    OK,
    OUTPUT_FILTER,
    CEditOptions,
    CEntry,
    CImage,
    CLoadOptions,
)

if TYPE_CHECKING:
    from .conftest import CppBuild


def load(c_api: ctypes.CDLL, bundle: Path, **options: Any) -> ctypes.c_void_p:
    pipeline, chosen = ctypes.c_void_p(), CLoadOptions(threads=1, **options)
    status = c_api.kontext_load(str(bundle).encode(), ctypes.byref(chosen), ctypes.byref(pipeline))
    assert status == OK, c_api.kontext_error()
    return pipeline


KEPT: list[np.ndarray] = []
"""The pixels of every `c_image`."""


def c_image(picture: Image.Image) -> CImage:
    KEPT.append(np.ascontiguousarray(picture.convert("RGB")))
    return CImage(picture.width, picture.height, KEPT[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))


def pixels_of(image: CImage) -> Any:
    return np.ctypeslib.as_array(image.rgb, (image.height, image.width, 3)).astype(int)


def drawing(width: int, height: int) -> Image.Image:
    return Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def test_several_pictures_are_those_of_their_seeds(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    drawing(176, 96).save(tmp_path / "in.png")
    words = [tiny_bundle, "-i", tmp_path / "in.png", "-p", "make it blue", "--steps", 2, "--threads", 1]
    done = cpp.run(*words, "--seed", 7, "--num-images", 3, "-o", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    names = [f"out-{index}.png" for index in range(3)]
    assert done.stdout == "running with ONNX Runtime on the CPU\n" + "".join(
        f"wrote {tmp_path / name} (176x96)\n" for name in names
    )
    expected = Pipeline.load(tiny_bundle, device="cpu", backend=OnnxRuntimeOptions(threads=1)).edit(
        drawing(176, 96), "make it blue", steps=2, seed=7, num_images=3
    )
    for name, picture in zip(names, expected, strict=True):
        difference = np.asarray(Image.open(tmp_path / name), int) - np.asarray(picture, int)
        assert np.abs(difference).max() <= 1
    assert cpp.run(*words, "--seed", 9, "-o", tmp_path / "alone.png").returncode == 0
    difference = np.asarray(Image.open(tmp_path / "alone.png"), int) - np.asarray(expected[2], int)
    assert np.abs(difference).max() <= 1


def test_a_batch_is_pythons(c_api: ctypes.CDLL, tiny_bundle: Path) -> None:
    """Prompts with no, one and two references, of which some share pictures and some a shape."""
    a, b = drawing(176, 96), drawing(90, 131)
    prompts, images = (
        ["make it blue", "a red circle", "make it blue", "turn day into night"],
        [[a], None, [a, b], [a]],
    )
    expected = Pipeline.load(tiny_bundle, device="cpu", backend=OnnxRuntimeOptions(threads=1)).edit(
        images,
        prompts,
        steps=2,
        seed=4,
        num_images=2,  # type: ignore[arg-type]
    )
    arrays = [(CImage * len(each))(*map(c_image, each)) if each else None for each in images]
    entries = (CEntry * 4)(
        *(
            CEntry(prompt.encode(), array, len(array) if array else 0)
            for prompt, array in zip(prompts, arrays, strict=True)
        )
    )
    pipeline, results = load(c_api, tiny_bundle), (CImage * 8)()
    options = CEditOptions(steps=2, seed=4)
    status = c_api.kontext_edit_all(pipeline, entries, 4, 2, ctypes.byref(options), results)
    assert status == OK, c_api.kontext_error()
    for image, picture in zip(results, expected, strict=True):
        assert (image.width, image.height) == picture.size
        assert np.abs(pixels_of(image) - np.asarray(picture)).max() <= 1
        c_api.kontext_image_free(ctypes.byref(image))
    for count, images_each, message in ((0, 1, b"there are no edits"), (4, 0, b"num_images must be")):
        status = c_api.kontext_edit_all(pipeline, entries, count, images_each, ctypes.byref(options), results)
        assert status == ERROR
        assert message in c_api.kontext_error()
    c_api.kontext_free(pipeline)


def test_content_filters(c_api: ctypes.CDLL, tiny_bundle: Path) -> None:
    seen: list[tuple[int, bytes]] = []
    reason = ctypes.create_string_buffer(b"this prompt is not allowed")

    @INPUT_FILTER
    def check(user: int, references: Any, count: int, prompt: bytes) -> int | None:
        assert user == 5
        assert all((references[index].width, references[index].height) == (64, 32) for index in range(count))
        seen.append((count, prompt))
        return ctypes.addressof(reason) if b"forbidden" in prompt else None

    @OUTPUT_FILTER
    def blacken(_user: int, image: Any) -> int | None:
        ctypes.memset(image[0].rgb, 0, 3 * image[0].width * image[0].height)
        return None

    pipeline = load(c_api, tiny_bundle, input_filter=check, output_filter=blacken, user=5)
    reference, result = c_image(drawing(64, 32)), CImage()
    options = CEditOptions(references=ctypes.pointer(reference), reference_count=1, steps=1)
    assert c_api.kontext_edit(pipeline, b"forbidden", ctypes.byref(options), ctypes.byref(result)) == ERROR
    assert c_api.kontext_error() == b"this prompt is not allowed"
    assert c_api.kontext_edit(pipeline, b"make it blue", ctypes.byref(options), ctypes.byref(result)) == OK
    assert not pixels_of(result).any()
    c_api.kontext_image_free(ctypes.byref(result))
    assert seen == [(1, b"forbidden"), (1, b"make it blue")]
    entries = (CEntry * 2)(CEntry(b"one", None, 0), CEntry(b"two", None, 0))
    results = (CImage * 4)()
    assert c_api.kontext_edit_all(pipeline, entries, 2, 2, ctypes.byref(options), results) == OK
    assert seen[2:] == [(0, b"one"), (0, b"two")]  # once for each prompt
    for image in results:
        c_api.kontext_image_free(ctypes.byref(image))
    c_api.kontext_free(pipeline)


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_another_thread_cancels(cpp: CppBuild, c_api: ctypes.CDLL, tiny_bundle: Path, device: str) -> None:
    """In the middle of a step; the pipeline edits again afterwards."""
    if device == "openvino" and "openvino:cpu" not in cpp.run("--devices").stdout:
        pytest.skip("OpenVINO's wheel is not installed")
    pipeline, result = load(c_api, tiny_bundle, device=device.encode(), low_memory=-1), CImage()
    options = CEditOptions(steps=100_000, width=256, height=256)
    timer = threading.Timer(1, lambda: c_api.kontext_cancel(pipeline))
    timer.start()
    assert c_api.kontext_edit(pipeline, b"x", ctypes.byref(options), ctypes.byref(result)) == CANCELLED
    timer.join()
    assert c_api.kontext_error() == b"the edit was cancelled"
    options.steps = 1
    assert c_api.kontext_edit(pipeline, b"x", ctypes.byref(options), ctypes.byref(result)) == OK
    c_api.kontext_image_free(ctypes.byref(result))
    c_api.kontext_free(pipeline)


def test_devices_in_c(c_api: ctypes.CDLL, tiny_bundle: Path) -> None:
    listed: list[tuple[bytes, bytes | None]] = []
    found = FOUND(lambda _user, device, provider, _description: listed.append((device, provider)))
    assert c_api.kontext_list_devices(None, found, None) == OK
    assert listed[0] == (b"cpu", None)
    assert c_api.kontext_list_devices(b"nowhere.so", found, None) == ERROR
    pipeline, chosen = ctypes.c_void_p(), CLoadOptions(device=b"gpu")
    status = c_api.kontext_load(str(tiny_bundle).encode(), ctypes.byref(chosen), ctypes.byref(pipeline))
    assert status == ERROR
    assert b"device 'gpu' is not known" in c_api.kontext_error()


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_jpeg_files_are_those_of_pillow(
    cpp: CppBuild, tiny_bundle: Path, tmp_path: Path, suffix: str
) -> None:
    words = [tiny_bundle, "--prompt", "make it blue", "--steps", 1, "--threads", 1]
    assert cpp.run(*words, "-o", tmp_path / "out.png").returncode == 0
    assert cpp.run(*words, "-o", tmp_path / f"out.{suffix}").returncode == 0
    Image.open(tmp_path / "out.png").save(tmp_path / "pillow.jpg")
    with Image.open(tmp_path / f"out.{suffix}") as ours, Image.open(tmp_path / "pillow.jpg") as theirs:
        assert ours.format == "JPEG"
        assert np.array_equal(ours, theirs)
