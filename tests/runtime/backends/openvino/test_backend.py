"""Whole edits in OpenVINO, in every number format, beside ONNX Runtime's (NVFP4: PyTorch's); skipped without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.decibels import psnr
from kontext.errors import KontextError
from kontext.runtime import OpenVINOOptions, Pipeline
from kontext.runtime.bundle import GRAPHS, Bundle

ov = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from kontext.runtime.backends.openvino import backend as backend_module  # noqa: E402
from kontext.runtime.backends.openvino.backend import OpenVINOBackend  # noqa: E402

HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
PROMPT = "make it blue"
WEIGHTS = ("fp8", "int8", "int4", "nf4", "nvfp4")


@pytest.fixture(scope="module")
def reference() -> Image.Image:
    return Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def load(bundle: Path, **options: Any) -> Pipeline:
    return Pipeline.load(
        bundle, device="openvino", backend=OpenVINOOptions(threads=1, **options), low_memory=False
    )


def backend_of(bundle: Path, **options: Any) -> OpenVINOBackend:
    return OpenVINOBackend(Bundle.open(bundle), options=OpenVINOOptions(threads=1, **options))


@pytest.fixture(scope="module")
def half_bundles(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What `tiny_checkpoint` becomes with each thing to compute in."""
    from kontext.export.cli.main import main

    root = tmp_path_factory.mktemp("openvino")
    for name in ("bf16", "fp16"):
        assert main([str(tiny_checkpoint), "-o", str(root / name), f"--{name}", "--quiet"]) == 0
    return {"fp32": tiny_bundle, "bf16": root / "bf16", "fp16": root / "fp16"}


@pytest.fixture(scope="module")
def bundle_of(
    half_bundles: dict[str, Path],
    tiny_checkpoint: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """The bundle of `tiny_checkpoint` with some of kontext-export's flags, made once."""
    from kontext.export.cli.main import main

    root = tmp_path_factory.mktemp("openvino-quantized")

    def make(compute: str, *flags: str) -> Path:
        folder = root / "".join([compute, *flags])
        if flags and not folder.exists():
            with untraced(half_bundles[compute]):
                words = [str(tiny_checkpoint), "-o", str(folder), f"--{compute}", *flags, "--quiet"]
                assert main(words) == 0
        return folder if flags else half_bundles[compute]

    return make


@pytest.fixture(scope="module")
def expected(bundle_of: Callable[..., Path], reference: Image.Image) -> Callable[..., Image.Image]:
    """The picture that a bundle which computes in fp32 gives elsewhere."""
    pictures: dict[tuple[str, ...], Image.Image] = {}

    def edit(*flags: str) -> Image.Image:
        if flags not in pictures:
            other = "torch" if "--nvfp4" in flags else "onnxruntime"  # which has no kernel for it
            pipe = Pipeline.load(bundle_of("fp32", *flags), device="cpu", backend=other)
            pictures[flags] = pipe.edit(reference, PROMPT, steps=2)
        return pictures[flags]

    return edit


@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "flags", [[], ["--fp8"], *([f"--{name}", "--weight-only"] for name in WEIGHTS)], ids=" ".join
)
def test_every_format_is_edited(
    compute: str,
    flags: list[str],
    bundle_of: Callable[..., Path],
    expected: Callable[..., Image.Image],
    reference: Image.Image,
) -> None:
    """With the same bits in every run and batch."""
    pipe = load(bundle_of(compute, *flags))
    picture = pipe.edit(reference, PROMPT, steps=2)
    assert psnr(picture, expected(*flags)) > 35
    assert np.array_equal(picture, pipe.edit(reference, PROMPT, steps=2))
    assert np.array_equal(picture, pipe.edit(reference, [PROMPT, "make it red"], steps=2)[0])


@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
def test_int8_activations(
    compute: str,
    bundle_of: Callable[..., Path],
    expected: Callable[..., Image.Image],
    reference: Image.Image,
) -> None:
    """In fp32 all pictures of a batch share a scale, as in ONNX Runtime, so a batch has other bits."""
    pipe = load(bundle_of(compute, "--int8"))
    picture = pipe.edit(reference, PROMPT, steps=2)
    assert psnr(picture, expected("--int8")) > 35
    assert np.array_equal(picture, pipe.edit(reference, PROMPT, steps=2))
    if compute != "fp32":
        assert np.array_equal(picture, pipe.edit(reference, [PROMPT, "make it red"], steps=2)[0])


def test_the_embedded_model(embedded: dict[str, Path]) -> None:
    """fp32 is ONNX Runtime's picture; bf16 is at least 50 dB from it; quantized ones are as close as ONNX Runtime's."""
    from kontext.bench.inputs import output_size, picture_and_prompt

    picture, prompt = picture_and_prompt(None, None, output_size(embedded["fp32"], None))
    expected = Pipeline.load(embedded["fp32"], device="cpu").edit(picture, prompt, steps=4)
    assert psnr(load(embedded["fp32"]).edit(picture, prompt, steps=4), expected) > 60
    if HAS_BF16:
        assert psnr(load(embedded["fp32"], compute="bf16").edit(picture, prompt, steps=4), expected) > 50
    for name in ("fp8", "int4"):
        theirs = psnr(Pipeline.load(embedded[name], device="cpu").edit(picture, prompt, steps=4), expected)
        assert psnr(load(embedded[name]).edit(picture, prompt, steps=4), expected) > theirs - 1


def runtime_types(backend: OpenVINOBackend, graph: str) -> set[str]:
    """The types of the weights of the compiled graph's matrix products."""
    types = set()
    for node in backend.compile(graph, None).get_compiled_model().get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and str(info["layerType"].get()) == "FullyConnected":
            types.add(node.input(1).get_element_type().get_type_name())
    return types


@pytest.mark.parametrize(
    ("name", "packed"), [("int8", "i8"), ("int4", "i4"), ("nf4", "nf4"), ("nvfp4", "f4e2m1")]
)
def test_weights_stay_packed(name: str, packed: str, bundle_of: Callable[..., Path]) -> None:
    """Beside bf16 scales too."""
    assert packed in runtime_types(backend_of(bundle_of("bf16", f"--{name}", "--weight-only")), "transformer")


def test_graphs_are_compiled_when_needed_and_dropped_when_told(tiny_bundle: Path) -> None:
    backend = backend_of(tiny_bundle)
    assert not backend.compiled
    outputs = backend.run("text_encoder", {"input_ids": np.ones((2, 77), np.int64)})
    assert outputs["pooled"].shape == (2, 32)
    assert outputs["pooled"].dtype == np.float32
    assert list(backend.compiled) == ["text_encoder"]
    compiled = backend.compiled["text_encoder"].request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    kept = outputs["pooled"].copy()
    backend.run("text_encoder", {"input_ids": np.zeros((2, 77), np.int64)})
    assert np.array_equal(outputs["pooled"], kept)  # it belongs to the caller
    backend.release("text_encoder", "transformer")
    assert not backend.compiled


@pytest.mark.parametrize("references", [0, 1, 2])
def test_large_bundles_are_compiled_for_the_shapes_of_an_edit(
    references: int, tiny_bundle: Path, reference: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pictures that any shapes give, and again for others."""
    images: list[Image.Image] = [reference, reference.resize((96, 64))][:references]
    sizes = ((96, 96), (128, 64))
    expected = [load(tiny_bundle).edit(images, PROMPT, steps=2, size=size) for size in sizes]
    monkeypatch.setattr(backend_module, "FIXED_SHAPES_BYTES", 0)
    pipe = load(tiny_bundle)
    for size, theirs in zip(sizes, expected, strict=True):
        assert psnr(pipe.edit(images, PROMPT, steps=2, size=size), theirs) > 60
        compiled = pipe.backend.compiled["transformer"].request.get_compiled_model()  # type: ignore[attr-defined]
        assert not any(port.get_partial_shape().is_dynamic for port in compiled.inputs)


def test_the_cache_holds_what_was_compiled(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second start takes all but the transformer from it, and makes the same picture. Damaged entries are
    compiled again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pictures, folder = [], tmp_path / "kontext-export" / "openvino"
    for start in ("first", "second", "damaged"):
        if start == "damaged":
            for blob in folder.iterdir():
                blob.chmod(0o600)
                blob.write_bytes(blob.read_bytes()[:1000])
        pipe = load(tiny_bundle)
        pictures.append(pipe.edit(None, PROMPT, steps=1, size=(96, 96)))
        assert isinstance(pipe.backend, OpenVINOBackend)
        pipe.backend.run("vae_encoder", {"image": np.zeros((1, 3, 64, 64), np.float32)})
        found = {
            graph: bool(each.request.get_compiled_model().get_property("LOADED_FROM_CACHE"))
            for graph, each in pipe.backend.compiled.items()
        }
        assert found == {graph: start == "second" and graph != "transformer" for graph in GRAPHS}
    assert all(np.array_equal(each, pictures[0]) for each in pictures)


def test_no_cache(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load(tiny_bundle, cache=False).edit(None, PROMPT, steps=1, size=(96, 96))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_run_is_one_line(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KontextError, match=r"text_encoder failed in OpenVINO: .*incompatible") as caught:
        backend_of(tiny_bundle).run("text_encoder", {"input_ids": np.ones((1, 5), np.int64)})
    assert "\n" not in str(caught.value)
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    backend = backend_of(folder)
    (folder / "transformer.onnx").write_bytes(b"not a graph")
    with pytest.raises(
        KontextError, match=r"transformer\.onnx is damaged: its SHA-256 is not the manifest's"
    ):
        backend.compile("transformer", None)
    monkeypatch.setattr(Bundle, "graph_bytes", lambda bundle, graph: bundle.graphs[graph].path.read_bytes())
    with pytest.raises(
        KontextError, match=r"transformer\.onnx cannot be compiled for OpenVINO's CPU: "
    ) as caught:
        backend.compile("transformer", None)
    assert "\n" not in str(caught.value)
    (folder / "weights" / "vae_decoder.safetensors").write_bytes(b"")
    with pytest.raises(
        KontextError, match=r"vae_decoder\.onnx cannot be compiled for OpenVINO's CPU: "
    ) as caught:
        backend.compile("vae_decoder", None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpu", "npu"])
def test_devices_that_are_not_there(tiny_bundle: Path, name: str) -> None:
    if any(each.startswith(name.upper()) for each in ov.Core().available_devices):
        pytest.skip(f"this machine has the {name}")
    with pytest.raises(KontextError, match=f"OpenVINO finds no {name.upper()} here"):
        Pipeline.load(tiny_bundle, device=f"openvino:{name}")


def test_an_edit_loads_neither_onnx_runtime_nor_pytorch(tiny_bundle: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from kontext.runtime.cli import main; code = main(sys.argv[1:]); "
        "print(code, *sorted(sys.modules))"
    )
    flags = [
        "--device",
        "openvino",
        "--compute",
        "fp32",
        "--prompt",
        PROMPT,
        "--size",
        "96x96",
        "--steps",
        "1",
    ]
    arguments = [str(tiny_bundle), *flags, "-o", str(tmp_path / "out.png"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    code, *modules = done.stdout.split()
    assert code == "0"
    assert "openvino" in modules
    assert not {"onnxruntime", "torch"} & set(modules)
