"""Compiled kernels in a bundle: the index, the driver's launches, the C++ example; every launch of a step is there."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import archive, compile, driver, launch, residual, variants

EXAMPLE = Path(archive.__file__).parent / "cpp" / "launch.cpp"


class Library:
    """Stands in for libcuda: remembers calls, and reads a launch's parameters as the driver would."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failing = failing
        self.parameters: list[int] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"no kernel image is available"
            if name == "cuLaunchKernel":
                self.parameters = [
                    ctypes.cast(address, ctypes.POINTER(ctypes.c_uint32)).contents.value
                    for address in arguments[9]
                ]
            return 209 if name == self.failing else 0

        return call


def index(folder: Path, **changes: Any) -> dict[str, Any]:
    """An index with one entry, for gate and residual, and its file."""
    given = gate_residual()
    entry = {
        "name": "gate_residual",
        "key": given.key(),
        "file": "000-gate_residual_kernel.cubin",
        "symbol": "gate_residual_kernel",
        "shared": 4096,
        "warps": 4,
        "arguments": [[name, kind] for name, kind in given.signature().items()],
        "nulls": 2,
    }
    entry.update(changes)
    data = {"format": archive.FORMAT, "architecture": "sm_89", "kernels": [entry]}
    (folder / archive.INDEX).write_text(json.dumps(data))
    (folder / "000-gate_residual_kernel.cubin").write_bytes(b"cubin")
    return data


def gate_residual() -> launch.Launch:
    x = torch.zeros(1, 3, 64, dtype=torch.bfloat16)
    return residual.plan_gate_residual(x, torch.zeros(1, 64, dtype=torch.bfloat16), x.clone())


def test_a_registered_kernel_is_started_with_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "COMPILED", {})
    monkeypatch.setattr(driver, "COMPILED", launch.COMPILED)
    monkeypatch.setattr(launch, "triton", None)
    index(tmp_path)
    library = Library()
    assert driver.register(tmp_path, driver.Driver(library)) == 1
    given = gate_residual()
    given.run()
    given.run()
    names = [name for name, _ in library.calls]
    assert names == ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", *["cuLaunchKernel"] * 2]
    arguments = library.calls[-1][1]
    assert arguments[1:8] == (3, 1, 1, 128, 1, 1, 4096)
    tensors = [given.arguments[name].data_ptr() & 0xFFFFFFFF for name in ("x", "gate", "y")]
    assert library.parameters == [*tensors, 3, 192, 64, 192, 64, 64, 0, 0]


def test_what_is_not_there_or_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "COMPILED", {})
    monkeypatch.setattr(driver, "COMPILED", launch.COMPILED)
    monkeypatch.setattr(launch, "triton", None)
    with pytest.raises(KontextError, match=r"gate_residual_kernel for this GPU, and Triton is not installed"):
        gate_residual().run()
    index(tmp_path)
    driver.register(tmp_path, driver.Driver(Library(failing="cuModuleLoadData")))
    with pytest.raises(KontextError, match="CUDA's cuModuleLoadData failed: no kernel image is available"):
        gate_residual().run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../x.cubin"}, "not the name of a cubin beside it"),
        ({"arguments": [["x", "i7"]]}, "argument of type 'i7'"),
        ({"warps": 0}, "warps of gate_residual must be a whole number of 1 or more"),
        ({"key": 3}, "key and symbol must be text"),
    ],
)
def test_damaged_indices(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    index(tmp_path, **changes)
    with pytest.raises(KontextError, match=message):
        driver.register(tmp_path, driver.Driver(Library()))


def test_indices_of_other_formats_or_none(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="is not an index of compiled kernels"):
        driver.register(tmp_path, driver.Driver(Library()))
    (tmp_path / archive.INDEX).write_text('{"format": 99, "kernels": []}')
    with pytest.raises(KontextError, match="has format 99, this reads 1"):
        driver.register(tmp_path, driver.Driver(Library()))


def test_sizes_are_the_manifests() -> None:
    sizes = archive.sizes_of({"hidden_size": 192, "num_heads": 3, "mlp_ratio": 4.0}, "bf16")
    assert (sizes.hidden, sizes.heads, sizes.mlp, sizes.compute) == (192, 3, 768, torch.bfloat16)
    with pytest.raises(KontextError, match="compute in fp16 or bf16, not in fp32: add --bf16"):
        archive.sizes_of({"hidden_size": 192, "num_heads": 3, "mlp_ratio": 4.0}, "fp32")


def test_architectures_by_name() -> None:
    assert compile.parse_architectures("sm_89, 12.0") == (89, 120)
    with pytest.raises(KontextError, match="not for sm_75"):
        compile.parse_architectures("sm_75")


SCRIPT = """
import json, sys
from pathlib import Path
from kontext.kernels.archive import archive
from kontext.kernels.variants import Sizes
for name, data in archive(89, Sizes(hidden=128, heads=2, mlp=256), only="^(dequantize int4, proj|gate_residual)$"):
    (Path(sys.argv[1]) / name).write_bytes(data)
"""


def test_compiled_files_and_their_index(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    folder = tmp_path / "sm_89"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], env=environment, check=True, timeout=300)
    saved = json.loads((folder / archive.INDEX).read_text())
    assert saved["architecture"] == "sm_89"
    assert [entry["name"] for entry in saved["kernels"]] == ["gate_residual", "dequantize int4, proj"]
    for entry in saved["kernels"]:
        assert (folder / entry["file"]).read_bytes()[:4] == b"\x7fELF"
        assert entry["nulls"] == 2  # Triton's scratch and profile memory
    unpacking = saved["kernels"][1]
    assert unpacking["arguments"] == [
        ["packed", "*u8"],
        ["scales", "*bf16"],
        ["out", "*bf16"],
        ["height", "i32"],
        ["half_width", "i32"],
    ]
    assert unpacking["constants"]["COLUMNS"] == 128  # what the C++ example counts on
    library = Library()
    assert driver.register(folder, driver.Driver(library)) == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_cpp_example_compiles_and_says_what_it_lacks(tmp_path: Path) -> None:
    program = tmp_path / "launch"
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        str(EXAMPLE),
        "-ldl",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "usage")
    done = subprocess.run([program, EXAMPLE, "x", "0", "4", "2", "63", "128"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: ROWS must be a multiple of 64 and COLUMNS of 32\n")


def test_every_launch_of_a_step_is_among_the_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's launchers run on a CPU with nothing started; each key must be one of the archive's."""
    from kontext.bench.gpu import step
    from kontext.kernels import (
        adaln,
        attention,
        dequantize_4bit,
        gelu,
        gemm,
        int4,
        int4_to_fp8,
        norm_rope,
        norm_rope_quantize,
    )
    from kontext.model.config import TransformerConfig
    from kontext.runtime.backends.torch import (
        linear,
        transformer,
        weights,
    )

    config = TransformerConfig(
        hidden_size=128, num_heads=2, num_double_blocks=1, num_single_blocks=1, mlp_ratio=2.0, axes_dim=(8, 28, 28),
        text_dim=64,
    )  # fmt: skip
    homes = (
        adaln,
        attention,
        dequantize_4bit,
        gelu,
        gemm,
        int4,
        int4_to_fp8,
        norm_rope,
        norm_rope_quantize,
        residual,
    )
    started: dict[str, str] = {}
    monkeypatch.setattr(launch.Launch, "run", lambda self: started.setdefault(self.key(), self.name))
    for module, names in (
        (
            linear,
            ("adaln", "adaln_quantize", "gelu_join", "gelu_join_quantize", "scaled_linear", "int4_linear"),
        ),
        (linear, ("int4_to_fp8", "gate_residual")),
        (transformer, ("adaln", "attention", "attention_quantized", "norm_rope", "norm_rope_quantize")),
        (weights, ("dequantize_4bit",)),
    ):
        for name in names:
            home = next(each for each in homes if hasattr(each, f"launch_{name}"))
            monkeypatch.setattr(module, f"{name}_op", getattr(home, f"launch_{name}"))
    sizes = variants.Sizes(hidden=128, heads=2, mlp=256, rank=0)
    compiled = {variant.launch.key() for variant in variants.variants(90, sizes)}
    device = torch.device("cpu")
    model = step.random_network(config, device, torch.bfloat16)
    given = step.random_inputs(config, 5, 24, 20, device, torch.bfloat16)
    for formats in (*step.SIDES.values(), ("fp8", "fp8", "int8"), ("int4", "16-bit", "fp8")):
        step.on_kernels(model, *formats)(**given)
    missing = {key: name for key, name in started.items() if key not in compiled}
    assert not missing
    assert len(started) > 12
    # Every way that a GPU would choose from, for every linear of the blocks, and for any of the other networks.
    listed = {variant.name for variant in variants.variants(90, sizes)}
    linears = {name.partition(", ")[2] for name in listed if name.startswith("int4_gemm")}
    assert {f"int4_to_fp8, {name}" for name in linears} <= listed
    for depth, channels in ((768, 3072), (10240, 4096)):
        packed, scales = variants.int4_weight(depth, channels, torch.bfloat16)
        out = variants.meta(depth, channels, dtype=torch.bfloat16)
        assert dequantize_4bit.plan_dequantize_4bit(packed, None, scales, None, False, out).key() in compiled
