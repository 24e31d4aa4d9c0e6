"""The C++ runtime linked against ONNX Runtime's GPU library: its CUDA provider over stub CUDA libraries (sessions,
placement, binding), and plug-in providers, which run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.decibels import psnr
from kontext.runtime.backends.placement import CPU, HEAVY

from .environments import ROOT, Environment

pytestmark = pytest.mark.install

SDK = ROOT / "build" / "onnxruntime-sdk"
FAKE = ("fake-gpu", "--library", "onnxruntime", "--architecture", "sm_89", "--memory", "24GB", "--")

PLUGINS = ("onnxruntime-ggml==0.2.0", "onnxruntime-ep-openvino==1.8.1")

COPIES = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    FILE *file = fopen(getenv("COPIES"), "a");
    fprintf(file, "%d %zu\\n", kind, size);
    fclose(file);
    if (kind != 1) memset(to, 0, size);
    return 0;
}
"""
"""Writes down every copy: 1 to the device, 2 from it, 3 on it; and its bytes."""


@dataclass(frozen=True)
class GpuBuild:
    environment: Environment
    folder: Path

    def on_stubs(self, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        return self.environment.run("kontext-bench", *FAKE, self.folder / "build" / program, *words)

    def without_driver(self, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "build" / program), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def gpu(
    wheel: Path, fresh: Callable[..., Environment], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GpuBuild]:
    """The C++ programs, linked against the library in the onnxruntime-gpu wheel."""
    if shutil.which("cmake") is None or not (SDK / "include").is_dir():
        pytest.skip("the C++ runtime needs CMake and `make sdk`")
    environment = fresh()
    environment.install(wheel, "gpu,kernels")  # Triton has the headers that the stubs are compiled with
    environment.pip("install", "--no-deps", *PLUGINS)  # which would bring ONNX Runtime's wheel for CPUs
    folder = tmp_path_factory.mktemp("cpp")
    (libraries,) = environment.folder.glob("lib/python*/site-packages/onnxruntime/capi")
    (folder / "sdk" / "lib").mkdir(parents=True)
    for name in ("include", "share"):
        (folder / "sdk" / name).symlink_to(SDK.resolve() / name)
    for path in libraries.glob("libonnxruntime*.so*"):
        name = "libonnxruntime.so.1" if path.name.startswith("libonnxruntime.so") else path.name
        (folder / "sdk" / "lib" / name).symlink_to(path)
    (folder / "sdk" / "lib" / "libonnxruntime.so").symlink_to("libonnxruntime.so.1")
    options = ("-DKONTEXT_BUILD_PROBE=ON", "-DKONTEXT_OPENVINO=OFF", "-DCMAKE_UNITY_BUILD=ON")
    for words in (
        [
            "-S",
            ROOT / "runtime" / "cpp",
            "-B",
            folder / "build",
            f"-DONNXRUNTIME_ROOT={folder / 'sdk'}",
            *options,
        ],
        ["--build", folder / "build"],
    ):
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    yield GpuBuild(environment, folder)
    environment.remove()


@pytest.fixture(scope="module")
def bundles(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    from kontext.export.cli.main import main

    root = tmp_path_factory.mktemp("bundles")
    assert main([str(tiny_checkpoint), "-o", str(root / "bf16"), "--bf16", "--quiet"]) == 0
    made = {"fp32": tiny_bundle, "bf16": root / "bf16"}
    with untraced(root / "bf16"):
        for name in ("fp8", "int4", "int8"):
            made[f"bf16-{name}"] = folder = root / f"bf16-{name}"
            assert main([str(tiny_checkpoint), "-o", str(folder), "--bf16", f"--{name}", "--quiet"]) == 0
    with untraced(tiny_bundle):
        made["fp32-int8"] = folder = root / "fp32-int8"  # in a form for CPUs
        assert main([str(tiny_checkpoint), "-o", str(folder), "--int8", "--fp32", "--quiet"]) == 0
    return made


def test_every_graph_is_placed_on_the_gpu(gpu: GpuBuild, bundles: dict[str, Path]) -> None:
    for name, bundle in bundles.items():
        if name == "fp32-int8":
            continue
        done = gpu.on_stubs("kontext-probe", "placement", bundle, "cuda")
        assert done.returncode == 0, done.stderr
        sections = dict(
            re.findall(r"^graph (\w+)\n(.*?)(?=^graph |\Z)", done.stdout, re.MULTILINE | re.DOTALL)
        )
        assert set(sections) == set(re.findall(r"\w+(?=\.onnx)", " ".join(map(str, bundle.glob("*.onnx")))))
        for graph, text in sections.items():
            placed = {
                provider: Counter(re.findall(r"^  (\w+) \(", nodes, re.MULTILINE))
                for provider, nodes in re.findall(r"placed on \[(\w+)\][^\n]*\n((?:  [^\n]*\n)*)", text)
            }
            assert "CUDAExecutionProvider" in placed, (name, graph, text)
            assert not set(placed.get(CPU, ())) & HEAVY, (name, graph, placed[CPU])
            assert "heavy on the CPU" not in text, (name, graph, text)
            # Of prompts, CLIP finds the end on the CPU: once an edit.
            copies = sum(map(int, re.findall(r"(\d+) Memcpy nodes are added", text)))
            assert copies == (2 if graph == "text_encoder" else 0), (name, graph)


def test_costly_operators_on_the_cpu_are_seen(gpu: GpuBuild, bundles: dict[str, Path]) -> None:
    done = gpu.on_stubs("kontext-probe", "placement", bundles["fp32-int8"], "cuda")
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"^graph transformer\n(?:(?!graph ).*\n)*heavy on the CPU: (.*)$", done.stdout, re.MULTILINE
    )
    assert found
    assert re.search(r"\d+ MatMulInteger", found[1])


def test_what_the_steps_share_is_copied_once(gpu: GpuBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    """RoPE tables are held on the device, noise is copied at each step; without cuDNN only the decoder fails."""
    (tmp_path / "copies.c").write_text(COPIES)
    library = tmp_path / "copies.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "copies.c"], check=True)
    rope, target = (24 + 64) * 16 * 4, 64 * 64 * 4  # bytes, of 24 tokens of text and 64 of a picture
    counts = []
    for steps in (2, 6):
        log = tmp_path / f"copies-{steps}"
        program = str(gpu.folder / "build" / "kontext-edit-cpp")
        line = f'COPIES={log} LD_PRELOAD={library}:$LD_PRELOAD exec "$@"'
        words = (tiny_bundle, "-p", "x", "--steps", steps, "--device", "cuda", "-o", tmp_path / "out.png")
        done = gpu.environment.run("kontext-bench", *FAKE, "sh", "-c", line, "sh", program, *words)
        assert done.returncode == 2
        assert "error: vae_decoder failed in ONNX Runtime on CUDAExecutionProvider: " in done.stderr
        assert done.stderr.endswith("; or use --device cpu\n")
        found = Counter(log.read_text().splitlines())
        assert found[f"1 {rope}"] == 2  # cosines and sines
        assert found[f"2 {target}"] == steps  # velocities
        counts.append(found[f"1 {target}"])
    assert counts[1] - counts[0] == 6 - 2


def test_without_a_driver(gpu: GpuBuild, bundles: dict[str, Path], tmp_path: Path) -> None:
    line = r"^cuda  ONNX Runtime 1\.\d+\.\d+, "
    listed = gpu.without_driver("kontext-edit-cpp", "--devices").stdout
    assert re.search(rf"{line}(there is no NVIDIA driver, libcuda\.so\.1|\S.*)$", listed, re.MULTILINE)
    listed = gpu.on_stubs("kontext-edit-cpp", "--devices").stdout
    takes = "takes fp32, fp16 and bf16 bundles with weights of every format but NVFP4"
    assert re.search(rf"{line}Fake GPU, sm_89, \d+\.\d GiB; {takes}$", listed, re.MULTILINE)
    words = ("-p", "make it blue", "--steps", 1, "-o", tmp_path / "out.png")
    start = "text_encoder.onnx cannot be loaded on CUDAExecutionProvider: libcu"
    done = gpu.without_driver("kontext-edit-cpp", bundles["fp32"], *words, "--device", "cuda")
    assert done.returncode == 2
    assert start in done.stderr
    assert done.stderr.endswith("; or use --device cpu\n")
    assert done.stderr.count("\n") == 1
    done = gpu.without_driver("kontext-edit-cpp", bundles["fp32"], *words)  # auto
    assert done.returncode == 0
    assert done.stderr.startswith("warning: no usable GPU, running on the CPU: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout.startswith("running with ONNX Runtime on the CPU\n")
    done = gpu.without_driver("kontext-edit-cpp", bundles["bf16"], *words)
    assert done.returncode == 2
    assert done.stderr == (
        "error: ONNX Runtime has no kernels for bf16 on a CPU: export the model again with --fp32\n"
    )


def test_auto_falls_back(gpu: GpuBuild, bundles: dict[str, Path], tmp_path: Path) -> None:
    """There is a GPU with a driver, but CUDA's libraries cannot be loaded."""
    words = ("-p", "make it blue", "--steps", 1, "-o", tmp_path / "out.png")
    program = str(gpu.folder / "build" / "kontext-edit-cpp")
    line = 'LD_PRELOAD= LD_LIBRARY_PATH=$DRIVER exec "$@"'
    driver = tmp_path / "driver"
    driver.mkdir()
    copy = (
        f'cp "${{LD_LIBRARY_PATH%%:*}}/libcuda.so.1" {driver}; DRIVER={driver} exec sh -c \'{line}\' sh "$@"'
    )
    done = gpu.environment.run(
        "kontext-bench", *FAKE, "sh", "-c", copy, "sh", program, bundles["fp32"], *words
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: no usable GPU, running on the CPU: ")
    assert "text_encoder.onnx cannot be loaded on CUDAExecutionProvider: libcu" in done.stderr
    done = gpu.environment.run(
        "kontext-bench", *FAKE, "sh", "-c", copy, "sh", program, bundles["bf16"], *words
    )
    assert done.returncode == 2
    assert "error: ONNX Runtime has no kernels for bf16 on a CPU: " in done.stderr


def plugin(gpu: GpuBuild, pattern: str) -> Path:
    (library,) = gpu.environment.folder.glob(f"lib/python*/site-packages/{pattern}")
    return library


def edited(gpu: GpuBuild, bundle: Path, output: Path, *more: object) -> Image.Image:
    words = (bundle, "-p", "make it blue", "--steps", 2, "--threads", 1, "-o", output, *more)
    done = gpu.without_driver("kontext-edit-cpp", *words)
    assert done.returncode == 0, done.stderr
    if "--provider" in more:
        assert re.search(
            r"^warning: transformer.onnx: \w+ leaves to the CPU: .*\d", done.stderr, re.MULTILINE
        )
    with Image.open(output) as image:
        return image.copy()


def test_a_plug_in_provider_runs(gpu: GpuBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    """ggml's takes the modulation, and leaves what it has no operators for to ONNX Runtime's CPU."""
    library = plugin(gpu, "onnxruntime_ggml/lib/*.so")
    listed = gpu.without_driver("kontext-edit-cpp", "--devices", "--provider", library)
    assert listed.returncode == 0
    assert f"--provider {library}  libonnxruntime_ggml: CPU, " in listed.stdout
    expected = edited(gpu, tiny_bundle, tmp_path / "cpu.png", "--device", "cpu")
    for options in ("", ":device=cpu", ":threads=1,partial=1"):
        picture = edited(gpu, tiny_bundle, tmp_path / "out.png", "--provider", f"{library}{options}")
        assert psnr(picture, expected) > 40
        assert not np.array_equal(picture, expected), "the provider ran nothing"


def test_openvinos_plug_in(gpu: GpuBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    """It takes Intel's hardware only, and computes in bf16 where that has AMX unless it is told."""
    library = plugin(gpu, "onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so")
    listed = gpu.without_driver("kontext-edit-cpp", "--devices", "--provider", library).stdout
    if f"--provider {library}" not in listed:
        words = (tiny_bundle, "-p", "x", "-o", tmp_path / "out.png", "--provider", library)
        done = gpu.without_driver("kontext-edit-cpp", *words)
        assert done.returncode == 2
        assert f"error: provider {library}: it finds no device here that it runs on; check its" in done.stderr
        return
    expected = edited(gpu, tiny_bundle, tmp_path / "cpu.png", "--device", "cpu")
    (tmp_path / "fp32.json").write_text('{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}')
    options = f"device_type=CPU,load_config={tmp_path / 'fp32.json'}"
    picture = edited(gpu, tiny_bundle, tmp_path / "out.png", "--provider", f"{library}:{options}")
    assert psnr(picture, expected) > 60
