"""Launching a bundle's compiled kernels through a fake driver."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import archive, driver, launch, residual


class Library:
    """Fake libcuda: records calls, and reads a launch's parameters as the driver would."""

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
    """Writes an index with one kernel, gate_residual, and its cubin."""
    planned = gate_residual()
    entry = {
        "name": "gate_residual",
        "key": planned.key(),
        "file": "000-gate_residual_kernel.cubin",
        "symbol": "gate_residual_kernel",
        "shared": 4096,
        "warps": 4,
        "arguments": [[name, kind] for name, kind in planned.signature().items()],
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


def test_a_registered_kernel_is_launched_with_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "COMPILED", {})
    monkeypatch.setattr(driver, "COMPILED", launch.COMPILED)
    monkeypatch.setattr(launch, "triton", None)
    index(tmp_path)
    library = Library()
    assert driver.register(tmp_path, Path.read_bytes, driver.Driver(library)) == 1
    planned = gate_residual()
    planned.run()
    planned.run()
    names = [name for name, _ in library.calls]
    assert names == ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", *["cuLaunchKernel"] * 2]
    arguments = library.calls[-1][1]
    assert arguments[1:8] == (3, 1, 1, 128, 1, 1, 4096)
    tensors = [planned.arguments[name].data_ptr() & 0xFFFFFFFF for name in ("x", "gate", "y")]
    assert library.parameters == [*tensors, 3, 192, 64, 192, 64, 64, 0, 0]


def test_what_its_reader_refuses_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is a bundle's, which compares each file's SHA-256."""
    monkeypatch.setattr(launch, "COMPILED", {})
    monkeypatch.setattr(driver, "COMPILED", launch.COMPILED)
    monkeypatch.setattr(launch, "triton", None)
    index(tmp_path)
    read: list[str] = []

    def refuse_cubins(path: Path) -> bytes:
        read.append(path.name)
        if path.suffix == ".cubin":
            raise KontextError(f"{path} is damaged")
        return path.read_bytes()

    library = Library()
    assert driver.register(tmp_path, refuse_cubins, driver.Driver(library)) == 1
    with pytest.raises(KontextError, match=r"kernel\.cubin is damaged"):
        gate_residual().run()
    assert read == ["kernels.json", "000-gate_residual_kernel.cubin"]
    assert library.calls == []


def test_missing_kernels_and_errors_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "COMPILED", {})
    monkeypatch.setattr(driver, "COMPILED", launch.COMPILED)
    monkeypatch.setattr(launch, "triton", None)
    with pytest.raises(KontextError, match=r"gate_residual_kernel for this GPU, and Triton is not installed"):
        gate_residual().run()
    index(tmp_path)
    driver.register(tmp_path, Path.read_bytes, driver.Driver(Library(failing="cuModuleLoadData")))
    with pytest.raises(KontextError, match="CUDA's cuModuleLoadData failed: no kernel image is available"):
        gate_residual().run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../x.cubin"}, "not the name of a cubin in the same folder"),
        ({"arguments": [["x", "i7"]]}, "argument of type 'i7'"),
        ({"warps": 0}, "warps of gate_residual must be an integer of at least 1, not 0"),
        ({"key": 3}, "key and symbol of gate_residual must be strings"),
    ],
)
def test_damaged_indices(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    index(tmp_path, **changes)
    with pytest.raises(KontextError, match=message):
        driver.register(tmp_path, Path.read_bytes, driver.Driver(Library()))


def test_indices_of_other_formats_or_missing(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="is not an index of compiled kernels"):
        driver.register(tmp_path, Path.read_bytes, driver.Driver(Library()))
    (tmp_path / archive.INDEX).write_text('{"format": 99, "kernels": []}')
    with pytest.raises(KontextError, match="has format 99, only 1 can be read"):
        driver.register(tmp_path, Path.read_bytes, driver.Driver(Library()))
