"""Launches a bundle's compiled kernels through CUDA's driver API, without Triton.

`register(folder, read)` reads kernels.json; then `Launch.run` finds its kernel by `Launch.key`. Kernels run in
PyTorch's CUDA context, on its current stream. `read` compares what it returns with the bundle's manifest: this is
machine code.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import KontextError
from .archive import FORMAT, INDEX
from .launch import COMPILED, Launch

MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES of cuda.h."""

INTEGERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64}


class Driver:
    """The calls of libcuda that a launch needs."""

    def __init__(self, library: Any = None) -> None:
        if library is None:
            try:
                library = ctypes.CDLL("libcuda.so.1")
            except OSError:
                raise KontextError(
                    "compiled kernels need NVIDIA's driver: libcuda.so.1 cannot be loaded"
                ) from None
        self.library = library

    def call(self, name: str, *arguments: Any) -> None:
        """Calls the function `name`; raises KontextError with the driver's message unless it succeeds."""
        code = getattr(self.library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            message = text.value.decode() if text.value else f"error {code}"
            raise KontextError(f"CUDA's {name} failed: {message}")

    def load(self, image: bytes, symbol: str, shared: int) -> ctypes.c_void_p:
        """Loads a cubin; returns its function `symbol`, set up for `shared` bytes of dynamic shared memory."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), image)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, shared)
        return function

    def start(
        self,
        function: ctypes.c_void_p,
        grid: Sequence[int],
        threads: int,
        shared: int,
        stream: int,
        values: Sequence[Any],
    ) -> None:
        """Launches a kernel; `values` are ctypes objects in the order of its parameters."""
        addresses = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values)
        )
        self.call(
            "cuLaunchKernel",
            function,
            *grid,
            *(threads, 1, 1),
            shared,
            ctypes.c_void_p(stream),
            addresses,
            None,
        )


class CompiledKernel:
    """A kernel of kernels.json; its cubin is loaded at the first launch."""

    def __init__(
        self, entry: Mapping[str, Any], folder: Path, read: Callable[[Path], bytes], driver: Driver
    ) -> None:
        self.entry = entry
        self.folder = folder
        self.read = read
        self.driver = driver
        self.function: ctypes.c_void_p | None = None

    def __call__(self, launch: Launch) -> None:
        if self.function is None:
            image = self.read(self.folder / self.entry["file"])
            self.function = self.driver.load(image, self.entry["symbol"], self.entry["shared"])
        values = [packed(launch.arguments[name], kind) for name, kind in self.entry["arguments"]]
        values += [ctypes.c_void_p(None)] * self.entry["nulls"]
        stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0
        threads = 32 * self.entry["warps"]
        self.driver.start(self.function, launch.grid, threads, self.entry["shared"], stream, values)


def packed(value: Any, kind: str) -> Any:
    """An argument as a ctypes object of the kernel's parameter type."""
    if kind.startswith("*"):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if kind == "fp32" else INTEGERS[kind](value)


def register(folder: Path, read: Callable[[Path], bytes], driver: Driver | None = None) -> int:
    """Registers the compiled kernels in `folder` for `Launch.run`; returns how many.

    Args:
        folder: of kernels.json and its cubins.
        read: the checked bytes of a file, `Bundle.content` those of a bundle's; cubins are read at their first launch.
        driver: None: this machine's.

    Raises:
        KontextError: the index is damaged or has another format, or `read` refuses it.
    """
    path = folder / INDEX
    try:
        index = json.loads(read(path).decode("utf-8"))
        if index["format"] != FORMAT:
            raise KontextError(
                f"{path} has format {index['format']}, only {FORMAT} can be read: export the bundle again"
            )
        entries = [check_entry(entry, path) for entry in index["kernels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KontextError(f"{path} is not an index of compiled kernels: {error}") from None
    driver = driver or Driver()
    for entry in entries:
        COMPILED[entry["key"]] = CompiledKernel(entry, folder, read, driver)
    return len(entries)


def check_entry(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the entry; raises KontextError, KeyError or TypeError if a field is missing or malformed."""
    file = entry["file"]
    if Path(file).name != file or not file.endswith(".cubin"):
        raise KontextError(f"{path}: {file!r} is not the name of a cubin in the same folder")
    known = {"fp32", *INTEGERS}
    for name, kind in entry["arguments"]:
        if not isinstance(name, str) or not (kind.startswith("*") or kind in known):
            raise KontextError(f"{path}: {entry['name']} has an argument of type {kind!r}")
    for name, least in (("shared", 0), ("warps", 1), ("nulls", 0)):
        if not isinstance(entry[name], int) or entry[name] < least:
            raise KontextError(
                f"{path}: {name} of {entry['name']} must be an integer of at least {least}, not {entry[name]!r}"
            )
    if not isinstance(entry["key"], str) or not isinstance(entry["symbol"], str):
        raise KontextError(f"{path}: key and symbol of {entry['name']} must be strings")
    return entry
