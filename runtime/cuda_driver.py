"""The part of NVIDIA's driver API that engines need, through ctypes: memory, copies, one stream, captured graphs.

The driver's library comes with the driver; no toolkit, cuda-python or torch is needed.
CUDA Driver API reference: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..compute_capability import engine_target
from ..errors import KontextError

OUT_OF_MEMORY = 2
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

RELAXED_CAPTURE = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: the library may allocate while a run is captured."""

ALIGNMENT = 256
"""Bytes that sizes of allocations are rounded up to, so that none is empty."""

Handle = ctypes.c_void_p


def library_name() -> str:
    return "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def has_gpu() -> bool:
    """Whether this machine has a GPU with a working driver; creates no context on it."""
    count = ctypes.c_int()
    try:
        library = ctypes.CDLL(library_name())
    except OSError:
        return False
    return library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


@dataclass(frozen=True)
class Gpu:
    """A GPU's name, compute capability times ten and bytes of memory."""

    name: str
    capability: int
    memory: int


def find_gpu(index: int = 0) -> Gpu | None:
    """The properties of a GPU; creates no context on it. None without a working driver or such a GPU."""
    count, device, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    capability = [ctypes.c_int(), ctypes.c_int()]
    try:
        library = ctypes.CDLL(library_name())
    except OSError:
        return None
    done = (
        library.cuInit(ctypes.c_uint(0)) == 0
        and library.cuDeviceGetCount(ctypes.byref(count)) == 0
        and index < count.value
        and library.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index)) == 0
        and library.cuDeviceGetName(name, ctypes.c_int(len(name)), device) == 0
        and library.cuDeviceTotalMem_v2(ctypes.byref(memory), device) == 0
        and all(
            library.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), device) == 0
            for value, attribute in zip(capability, (MAJOR, MINOR), strict=True)
        )
    )
    if not done:
        return None
    text = name.value.decode(errors="replace")
    return Gpu(text, 10 * capability[0].value + capability[1].value, memory.value)


class CudaDriver:
    """One GPU's primary context and one stream, on which everything runs in order.

    Args:
        index: the GPU's number.
        library: the driver's library; None to find it.
        instead: what an error says would work without a GPU.

    Raises:
        KontextError: there is no driver or no such GPU.
    """

    def __init__(self, index: int = 0, library: Any = None, instead: str = "use --device cpu") -> None:
        if library is None:
            try:
                library = ctypes.CDLL(library_name())
            except OSError:
                raise KontextError(
                    f"there is no NVIDIA driver on this machine, and engines need a GPU: {instead}"
                ) from None
        self.library = library
        count, context, stream = ctypes.c_int(), Handle(), Handle()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if index >= count.value:
            raise KontextError(f"there is no GPU {index} on this machine: it has {count.value}")
        self.device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self.device), ctypes.c_int(index))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.context = context
        self.make_current()
        non_blocking = ctypes.c_uint(1)  # does not wait for the default stream
        self.call("cuStreamCreate", ctypes.byref(stream), non_blocking)
        self.stream = stream

    def call(self, function: str, *arguments: Any) -> None:
        """Calls a function of the driver. Raises KontextError with the driver's message."""
        status = getattr(self.library, function)(*arguments)
        if status == OUT_OF_MEMORY:
            raise KontextError(
                "out of GPU memory: try a smaller --size, fewer --num-images, or a smaller number format"
            )
        if status:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            words = text.value.decode() if text.value else f"error {status}"
            raise KontextError(f"the GPU's driver failed in {function}: {words}")

    def make_current(self) -> None:
        """Makes the context the calling thread's: memory and streams belong to it, and a new thread has none."""
        self.call("cuCtxSetCurrent", self.context)

    @property
    def target(self) -> str:
        """The architecture of this GPU, such as sm89."""
        parts = []
        for attribute in (MAJOR, MINOR):
            value = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), self.device)
            parts.append(value.value)
        return engine_target(10 * parts[0] + parts[1])

    def free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> DeviceMemory:
        return DeviceMemory(self, size)

    def upload(self, memory: DeviceMemory, source: NDArray[Any] | int, size: int) -> None:
        """Copies `size` bytes to the GPU from an array or an address, which must stay valid until `synchronize`."""
        address = source if isinstance(source, int) else source.ctypes.data
        if size:
            self.call(
                "cuMemcpyHtoDAsync_v2",
                ctypes.c_uint64(memory.address),
                Handle(address),
                ctypes.c_size_t(size),
                self.stream,
            )

    def download(self, memory: DeviceMemory, target: NDArray[Any]) -> None:
        """Fills an array from the GPU once everything enqueued before is done."""
        if target.nbytes:
            self.call(
                "cuMemcpyDtoHAsync_v2",
                Handle(target.ctypes.data),
                ctypes.c_uint64(memory.address),
                ctypes.c_size_t(target.nbytes),
                self.stream,
            )
        self.synchronize()

    def synchronize(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        self.call("cuStreamBeginCapture_v2", self.stream, ctypes.c_int(RELAXED_CAPTURE))

    def end_capture(self) -> CapturedRun:
        graph, executable = Handle(), Handle()
        self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        try:
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        finally:
            self.call("cuGraphDestroy", graph)
        return CapturedRun(self, executable)


class DeviceMemory:
    """Bytes on the GPU, freed with the last reference."""

    def __init__(self, driver: CudaDriver, size: int) -> None:
        self.driver = driver
        self.address = 0
        self.size = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(self.size))
        self.address = address.value

    def free(self) -> None:
        if self.address:
            self.driver.library.cuCtxSetCurrent(self.driver.context)  # any thread may drop the last reference
            self.driver.library.cuMemFree_v2(
                ctypes.c_uint64(self.address)
            )  # waits for runs that use the memory
            self.address = 0

    def __del__(self) -> None:
        self.free()


class CapturedRun:
    """A run recorded as a CUDA graph: one launch instead of thousands."""

    def __init__(self, driver: CudaDriver, executable: Handle) -> None:
        self.driver, self.executable = driver, executable

    def launch(self) -> None:
        self.driver.call("cuGraphLaunch", self.executable, self.driver.stream)

    def __del__(self) -> None:
        self.driver.library.cuGraphExecDestroy(self.executable)
