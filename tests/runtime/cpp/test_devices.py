"""`--device`, `--provider` and `--devices` of the C++ runtime: OpenVINO's pictures beside Python's, and refusals."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from kontext.runtime import OpenVINOOptions, Pipeline
from kontext.runtime.backends.choose import Machine, choose
from kontext.runtime.backends.openvino.device import has_bf16_units
from kontext.runtime.backends.options import DEVICES
from kontext.runtime.backends.placement import HEAVY
from kontext.runtime.bundle import Bundle

if TYPE_CHECKING:
    from .conftest import CppBuild

SOURCES = Path(__file__).resolve().parents[3] / "runtime" / "cpp" / "src"
PROMPT = "make it blue"


def words(bundle: Path, output: Path, *more: object) -> list[object]:
    return [bundle, "--prompt", PROMPT, "--steps", 2, "-o", output, *more]


def with_openvino(build: CppBuild) -> bool:
    return "openvino:cpu" in build.run("--devices").stdout


@pytest.fixture(scope="module")
def openvino(cpp: CppBuild) -> CppBuild:
    if not with_openvino(cpp):
        pytest.skip("OpenVINO's wheel is not installed")
    return cpp


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "in.png"
    Image.effect_mandelbrot((176, 96), (-2, -1.5, 1, 1.5), 50).save(path)
    return path


@pytest.fixture(scope="module")
def formats(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """`tiny_checkpoint` in several formats."""
    from kontext.export.cli.main import main

    root = tmp_path_factory.mktemp("formats")

    def export(name: str, *flags: str) -> Path:
        assert main([str(tiny_checkpoint), "-o", str(root / name), *flags, "--quiet"]) == 0
        return root / name

    made = {"fp32": tiny_bundle, "fp16": export("fp16", "--fp16"), "bf16": export("bf16", "--bf16")}
    with untraced(made["bf16"]):
        made["bf16-fp8"] = export("bf16-fp8", "--bf16", "--fp8")
        made["bf16-int4"] = export("bf16-int4", "--bf16", "--int4")
    with untraced(tiny_bundle):
        made["fp32-nf4"] = export("fp32-nf4", "--fp32", "--nf4")
    return made


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "bf16-fp8", "bf16-int4", "fp32-nf4"])
def test_openvino_gives_pythons_picture(
    openvino: CppBuild, formats: dict[str, Path], reference: Path, tmp_path: Path, name: str
) -> None:
    """Bit for bit: the graphs are rewritten alike, and OpenVINO computes the same in every run."""
    pipe = Pipeline.load(formats[name], device="openvino", backend=OpenVINOOptions(threads=1))
    expected = pipe.edit(Image.open(reference), PROMPT, steps=2)
    output = tmp_path / "out.png"
    done = openvino.run(
        *words(formats[name], output, "-i", reference, "--device", "openvino", "--threads", 1)
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(Image.open(output), expected)


def test_both_runtimes_share_openvinos_cache(
    openvino: CppBuild, formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are made of the rewritten graphs, their weights and the properties."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("fp16", "bf16-int4"):
        pipe = Pipeline.load(formats[name], device="openvino", backend=OpenVINOOptions(threads=1))
        pipe.edit(None, PROMPT, steps=1)
        kept = sorted(path.name for path in (tmp_path / "cache").rglob("*.blob"))
        assert kept
        done = openvino.run(
            *words(formats[name], tmp_path / "out.png", "--device", "openvino", "--threads", 1)
        )
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in (tmp_path / "cache").rglob("*.blob")) == kept


def test_openvino_computes_in_what_is_asked(
    openvino: CppBuild, formats: dict[str, Path], reference: Path, tmp_path: Path
) -> None:
    pictures = []
    for compute in ("fp32", "bf16"):
        options = OpenVINOOptions(threads=1, compute="fp32")
        more = ("-i", reference, "--device", "openvino:cpu", "--compute", compute, "--threads", 1)
        done = openvino.run(*words(formats["bf16"], tmp_path / f"{compute}.png", *more))
        if compute == "bf16" and done.returncode == 2:
            assert "does not compute in bf16 in OpenVINO: choose from fp32" in done.stderr
            return
        pictures.append(np.asarray(Image.open(tmp_path / f"{compute}.png")))
    expected = Pipeline.load(formats["bf16"], device="openvino", backend=options).edit(
        Image.open(reference), PROMPT, steps=2
    )
    assert np.array_equal(pictures[0], expected)
    assert not np.array_equal(pictures[0], pictures[1])


def test_openvino_refuses(openvino: CppBuild, tiny_bundle: Path, linked_bundle: Path, tmp_path: Path) -> None:
    listed = openvino.run("--devices").stdout
    for name in ("gpu", "npu"):
        if f"openvino:{name}" not in listed:
            message = openvino.refuse(
                *words(tiny_bundle, tmp_path / "out.png", "--device", f"openvino:{name}")
            )
            assert f"OpenVINO finds no {name.upper()} here (it has CPU" in message
    ov = pytest.importorskip("openvino")
    has_fp16 = "FP16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    no_fp16 = "does not compute in fp16 in OpenVINO: choose from fp32"
    for bundle, more, message in (
        (linked_bundle, [], "was exported with --link-weights, which OpenVINO does not read"),
        (tiny_bundle, ["--compute", "fp12"], "compute 'fp12' is not known: choose from"),
        *([] if has_fp16 else [(tiny_bundle, ["--compute", "fp16"], no_fp16)]),
    ):
        assert message in openvino.refuse(*words(bundle, tmp_path / "out.png", "--device", "openvino", *more))


def test_a_damaged_graph_in_openvino(openvino: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (folder / "text_encoder.onnx").write_bytes(b"nonsense")
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"size": 8, "sha256": hashlib.sha256(b"nonsense").hexdigest()}
    manifest["files"]["text_encoder.onnx"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = openvino.run(*words(folder, tmp_path / "out.png", "--device", "openvino"))
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"error: {folder / 'text_encoder.onnx'} is not a graph of this format: ")


def test_what_runs_instead_of_onnx_runtimes_cpu(
    cpp: CppBuild, formats: dict[str, Path], tmp_path: Path
) -> None:
    message = cpp.refuse(*words(formats["bf16"], tmp_path / "out.png", "--device", "cpu"))
    assert "ONNX Runtime has no kernels for bf16 on a CPU: " in message
    assert ("use --device openvino, or " in message) == with_openvino(cpp)
    assert message.endswith("export the model again with --fp32\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "gpu"], "device 'gpu' is not known: choose from auto, cpu, cuda, "),
        (["--device", "openvino:tpu"], "device 'openvino:tpu' is not known"),
        (["--device", ""], "device '' is not known"),
        (["--device", "cuda"], "device 'cuda' needs ONNX Runtime's CUDAExecutionProvider, which the linked"),
        (["--device", "rtx"], "device 'rtx' runs compiled engines, which the C++ runtime does not"),
        (["--device", "tensorrt"], "device 'tensorrt' runs compiled engines"),
        (
            ["--device", "nv-rtx"],
            "device 'nv-rtx' needs ONNX Runtime's plug-in for TensorRT for RTX, libonnxruntime",
        ),
        (["--device", "webgpu"], "device 'webgpu' needs ONNX Runtime's plug-in for WebGPU"),
        (["--device", "migraphx"], "device 'migraphx' needs ONNX Runtime's plug-in for MIGraphX (AMD)"),
        (["--compute", "bf16"], "--compute needs --device openvino"),
        (["--device", "cpu", "--compute", "bf16"], "--compute needs --device openvino"),
        (
            ["--device", "cpu", "--provider", "x.so"],
            "--provider and --device cpu both say what runs the graphs",
        ),
        (["--provider", "nowhere.so"], "provider nowhere.so: there is no such library"),
        (["--provider", "nowhere.so:a=b,c.d=e"], "provider nowhere.so: there is no such library"),
        (["--provider", "a=b"], "--provider takes LIBRARY[:key=value,…], not 'a=b'"),
        (["--provider", __file__], "cannot load it: "),
        (["--num-images", "0"], "--num-images must be 1 or more, not 0"),
        (["--num-images", "1001"], "--num-images may be at most 1000, not 1001"),
        (
            ["--num-images", "2", "--seed", "18446744073709551615"],
            "a seed is a whole number from 0 to 2^64 - 1",
        ),
    ],
)
def test_what_is_refused(
    cpp: CppBuild, tiny_bundle: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    assert message in cpp.refuse(*words(tiny_bundle, tmp_path / "out.png", *more))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "units", "ordinary"),
    [
        ("fp32", "ONNX Runtime on the CPU", "ONNX Runtime on the CPU"),
        ("fp16", "ONNX Runtime on the CPU", "ONNX Runtime on the CPU"),
        ("bf16", "OpenVINO", "OpenVINO"),
        ("bf16-int4", "OpenVINO", "OpenVINO"),
        ("fp32-nf4", "OpenVINO in bf16", "ONNX Runtime on the CPU"),
    ],
)
def test_auto_takes_what_python_takes(
    openvino: CppBuild, formats: dict[str, Path], tmp_path: Path, name: str, units: str, ordinary: str
) -> None:
    """`units`: on a processor that multiplies bf16 matrices faster than fp32 ones."""
    done = openvino.run(*words(formats[name], tmp_path / "out.png"))
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first == f"running with {units if has_bf16_units() else ordinary}"
    machine = Machine(packages={"openvino": "2026.4.1", "onnxruntime": "1.32.0"}, bf16_units=has_bf16_units())
    assert first == str(choose(Bundle.open(formats[name]), machine)).partition(";")[0]


def test_devices_have_pythons_names(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    message = cpp.refuse(*words(tiny_bundle, tmp_path / "out.png", "--device", "nowhere"))
    assert message.rstrip().partition("choose from ")[2].split(", ") == list(DEVICES)


def test_devices_are_listed(cpp: CppBuild) -> None:
    lines = cpp.run("--devices").stdout.splitlines()
    takes = "takes fp32 and fp16 bundles with weights of every format but NVFP4"
    assert re.fullmatch(rf"cpu  ONNX Runtime \d+\.\d+\.\d+; {takes}", lines[0])
    assert all(re.match(r"(cuda  \S|openvino:\w+  \S.*; takes every format)", line) for line in lines[1:])
    assert "there is no such library" in cpp.refuse("--devices", "--provider", "nowhere.so")


def test_the_same_operators_are_heavy_as_in_python() -> None:
    source = (SOURCES / "onnxruntime_library.cpp").read_text(encoding="utf-8")
    (listed,) = re.findall(r"heavy = \{(.*?)\}", source, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', listed)) == HEAVY
