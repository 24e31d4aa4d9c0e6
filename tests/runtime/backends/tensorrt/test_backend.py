"""The engines' backend: how it loads, names, chooses, refuses, refits and runs.

Engines need a GPU to run. Here a driver over the host's memory and a library that computes an engine's graph in ONNX
Runtime stand for it: addresses, shapes, profiles, weights and their order are those of the real ones.
"""

from __future__ import annotations

import ctypes
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.decibels import psnr
from kontext.errors import KontextError
from kontext.runtime import Pipeline, TensorRTOptions, cuda_driver
from kontext.runtime.backends.tensorrt import backend as tensorrt
from kontext.runtime.backends.tensorrt.backend import TensorRTBackend
from kontext.runtime.backends.tensorrt.weights import MappedWeights
from kontext.runtime.bundle import Bundle
from kontext.runtime.cuda_driver import CudaDriver
from kontext.runtime.engines import LIBRARIES

VERSION = "1.7.1.116"


class HostDriver:
    """libcuda's functions over the host's memory. What a capture records runs when it is launched."""

    def __init__(self, major: int = 8, minor: int = 9, gpus: int = 1, room: int = 1 << 30) -> None:
        self.capability, self.gpus, self.room = {75: major, 76: minor}, gpus, room
        self.memory: dict[int, Any] = {}
        self.recording: list[Any] | None = None
        self.recorded: dict[int, list[Any]] = {}
        self.launches = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 0  # the functions that only give handles

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, _device: Any) -> int:
        value._obj.value = self.capability[attribute.value]
        return 0

    def cuStreamCreate(self, stream: Any, _flags: Any) -> int:
        stream._obj.value = 4711
        return 0

    def cuMemGetInfo_v2(self, free: Any, _total: Any) -> int:
        free._obj.value = self.room
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        if size.value > self.room:
            return cuda_driver.OUT_OF_MEMORY
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.memory[address._obj.value] = block
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        del self.memory[address.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, _stream: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, _stream: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuStreamBeginCapture_v2(self, _stream: Any, _mode: Any) -> int:
        self.recording = []
        return 0

    def cuStreamEndCapture(self, _stream: Any, graph: Any) -> int:
        graph._obj.value = len(self.recorded) + 1
        self.recorded[graph._obj.value], self.recording = self.recording or [], None
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, _flags: Any) -> int:
        executable._obj.value = graph.value
        return 0

    def cuGraphLaunch(self, executable: Any, _stream: Any) -> int:
        self.launches += 1
        for run in self.recorded[executable.value]:
            run()
        return 0

    def cuGetErrorString(self, _status: Any, text: Any) -> int:
        text._obj.value = b"it is broken"
        return 0


class Enum:
    """Any attribute is its own name, as in the library's enumerations."""

    def __getattr__(self, name: str) -> str:
        return name


class HostLibrary:
    """TensorRT's Python API where an engine is JSON that names a graph; `rtx` has what TensorRT for RTX adds."""

    def __init__(self, driver: HostDriver, rtx: bool) -> None:
        self.driver, self.__version__ = driver, VERSION
        self.TensorIOMode = self.ExecutionContextAllocationStrategy = Enum()
        self.ILogger = type("ILogger", (), {"ERROR": "ERROR", "INTERNAL_ERROR": "INTERNAL_ERROR"})
        self.captures: list[str] = []
        if rtx:
            self.CudaGraphStrategy = Enum()

    def Runtime(self, logger: Any) -> Any:
        def deserialize(mapped: Any) -> Any:
            plan = bytes(mapped)
            if not plan.startswith(b"{"):
                logger.log("ERROR", "the plan is torn\nand more")
                return None
            return HostEngine(self, json.loads(plan))

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Weights(self, dtype: Any, address: int, count: int) -> Any:
        return SimpleNamespace(data=ctypes.string_at(address, count * dtype.itemsize))

    def Refitter(self, engine: HostEngine, _logger: Any) -> Any:
        def put(name: str, weights: Any) -> bool:
            engine.given[name] = weights.data
            return True

        dtype = np.dtype(np.float32)
        prototypes = {
            name: SimpleNamespace(dtype=dtype, size=math.prod(shape))
            for name, shape in engine.weights.items()
        }
        return SimpleNamespace(
            get_all_weights=lambda: list(prototypes),
            get_weights_prototype=prototypes.__getitem__,
            set_named_weights=put,
            refit_cuda_engine=lambda: set(engine.given) == set(prototypes),
        )

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype


class HostEngine:
    def __init__(self, library: HostLibrary, plan: dict[str, Any]) -> None:
        import onnxruntime

        self.library, self.kind = library, plan["weights"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan["graph"], options)
        self.file = MappedWeights(Path(plan["file"]))
        self.weights = {
            name: place.shape for name, place in self.file.entries.items() if place.dtype == "F32"
        }
        self.given: dict[str, bytes] = {}
        self.io = {value.name: ("INPUT", value) for value in self.session.get_inputs()}
        self.io |= {value.name: ("OUTPUT", value) for value in self.session.get_outputs()}
        self.bound = list(self.weights) if self.kind == "bound" else []
        self.names = [*self.io, *self.bound]
        self.num_io_tensors = len(self.names)
        self.streamable_weights_size = 1000 if self.kind == "inside" else 0
        self.budget = -1
        self.device_memory_size_v2 = 100
        if hasattr(library, "CudaGraphStrategy"):
            self.create_runtime_config = self.runtime_config

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        """Like the library's: a budget that there is no room for changes nothing and raises nothing."""
        if budget <= self.library.driver.room:
            self.budget = budget

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.bound else self.io[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        integer = name in self.io and "int64" in self.io[name][1].type
        return np.dtype(np.int64 if integer else np.float32)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.weights[name]

    def create_execution_context(self, how: Any) -> HostContext:
        assert how == "USER_MANAGED" or how.strategy == "USER_MANAGED"
        self.how = how
        return HostContext(self)

    def runtime_config(self) -> Any:
        config = SimpleNamespace(strategy=None, cuda_graph_strategy=None)
        config.set_execution_context_allocation_strategy = lambda value: setattr(config, "strategy", value)
        config.create_runtime_cache = lambda: SimpleNamespace(
            serialize=lambda: b"kernels", deserialize=self.library.captures.append
        )
        config.set_runtime_cache = lambda cache: None
        return config


class HostContext:
    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiles: list[int] = []
        self.scratch = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == 4711
        self.profiles.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for given, shape in self.shapes.items():
            for dimension, size in zip(self.engine.io[given][1].shape, shape, strict=True):
                if isinstance(dimension, str):
                    factor, star, inner = dimension.partition("*")
                    sizes[inner if star else dimension] = size // int(factor) if star else size
        result = []
        for dimension in self.engine.io[name][1].shape:
            if isinstance(dimension, str) and "*" in dimension:
                factor, _, inner = dimension.partition("*")
                result.append(int(factor) * sizes[inner])
            else:
                result.append(sizes[dimension] if isinstance(dimension, str) else dimension)
        return tuple(result)

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        driver = self.engine.library.driver
        if driver.recording is not None:
            driver.recording.append(self.compute)
        else:
            self.compute()
        return stream == 4711

    def compute(self) -> None:
        engine = self.engine
        assert self.scratch[1] >= self.update_device_memory_size_for_shapes()
        assert self.scratch[0] in engine.library.driver.memory
        for name in engine.weights:
            place = engine.file.entries[name]
            expected = ctypes.string_at(engine.file.address(place), place.size)
            if engine.kind == "bound":
                assert ctypes.string_at(self.addresses[name], place.size) == expected
            elif engine.kind == "stripped":
                assert engine.given[name] == expected
        inputs = {}
        for name, shape in self.shapes.items():
            dtype = engine.get_tensor_dtype(name)
            data = ctypes.string_at(self.addresses[name], math.prod(shape) * dtype.itemsize)
            inputs[name] = np.frombuffer(data, dtype).reshape(shape)
        outputs = [value.name for value in engine.session.get_outputs()]
        for name, array in zip(outputs, engine.session.run(outputs, inputs), strict=True):
            assert array.shape == self.get_tensor_shape(name)
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def engine_bundle(
    source: Path,
    folder: Path,
    weights: str = "bound",
    library: str = "rtx",
    batch: int = 4,
    streams: bool = False,
) -> Bundle:
    """A copy of a bundle with an engine for every graph on sm89, built with weight streaming or not."""
    export = pytest.importorskip("kontext.export.engines.build")
    bundle = Bundle.open(shutil.copytree(source, folder))
    options = export.EngineOptions(library, ("sm89",), weights, batch)
    for graph, files in bundle.graphs.items():
        entry = export.manifest_entry(bundle, graph, "sm89", options, VERSION)
        if streams:
            entry["streams"] = True
        path = bundle.folder / entry["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = {"graph": str(files.path), "file": str(files.weights), "weights": weights}
        path.write_text(json.dumps(plan))
        bundle = export.record_engine(bundle, entry)
    return bundle


def backend_of(bundle: Bundle, library: str = "rtx", **options: Any) -> tuple[TensorRTBackend, HostDriver]:
    driver = HostDriver()
    module = HostLibrary(driver, library == "rtx")
    backend = TensorRTBackend(
        bundle, library, TensorRTOptions(**options), driver=CudaDriver(library=driver), module=module
    )
    return backend, driver


PICTURE = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("weights", "library"), [("bound", "rtx"), ("stripped", "tensorrt"), ("inside", "tensorrt")]
)
def test_edits_are_those_of_the_graphs(tiny_bundle: Path, tmp_path: Path, weights: str, library: str) -> None:
    """No, one and two references, and a batch that is too large for one run; all on one block of activations."""
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle", weights, library, batch=2)
    backend, driver = backend_of(bundle, library)
    ours, theirs = Pipeline(bundle, backend), Pipeline.load(tiny_bundle, device="cpu")
    for images in (None, PICTURE, [PICTURE, PICTURE.rotate(90)]):
        given = {"steps": 3, "seed": 5, "num_images": 3 if images is PICTURE else 1}
        found, expected = (
            ours.edit(images, "make it blue", **given),
            theirs.edit(images, "make it blue", **given),
        )
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    stage = backend.stages["transformer"]
    uses = [stage.entry.profiles[index].use for index in stage.context.profiles]
    assert uses == ["no reference", "one reference", "2 to 4 references"]
    # TensorRT's runs are captured once their shapes and addresses come again; TensorRT for RTX does that itself.
    assert (driver.launches > 0) == (library == "tensorrt")
    backend.release(*bundle.graphs)
    assert not backend.stages
    assert backend.scratch is None


@pytest.mark.usefixtures("cache")
def test_engines_for_one_picture_run_both_passes_of_true_cfg(tiny_bundle: Path, tmp_path: Path) -> None:
    """One after the other."""
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle", batch=1)
    ours, theirs = Pipeline(bundle, backend_of(bundle)[0]), Pipeline.load(tiny_bundle, device="cpu")
    given: dict[str, Any] = {"negative_prompt": "a star", "true_cfg": 3.0, "cfg_until": 0.5, "strength": 0.8}
    found, expected = (
        each.edit(PICTURE, "make it blue", steps=5, mask=Image.linear_gradient("L"), **given)
        for each in (ours, theirs)
    )
    assert psnr(found, expected) > 60


@pytest.mark.usefixtures("cache")
def test_held_values_stay_on_the_gpu(tiny_bundle: Path, tmp_path: Path) -> None:
    backend, driver = backend_of(engine_bundle(tiny_bundle, tmp_path / "bundle"))
    before = len(driver.memory)
    held = backend.hold(
        {"a": np.arange(12, dtype=np.float32).reshape(4, 3), "none": np.ones((1, 0, 4), np.float32)}
    )
    assert len(driver.memory) == before + 2
    assert held["a"].rows(slice(1, 3)).shape == (2, 3)
    assert ctypes.string_at(held["a"].rows(slice(1, 3)).address, 4) == np.float32(3).tobytes()
    del held
    assert len(driver.memory) == before


def test_kernels_compiled_for_this_gpu_are_kept(tiny_bundle: Path, tmp_path: Path, cache: Path) -> None:
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle")
    for _ in range(2):
        backend, _ = backend_of(bundle)
        backend.run("text_encoder", {"input_ids": np.ones((1, 77), np.int64)})
    (file,) = (cache / "kontext-export" / "engines").iterdir()
    assert file.read_bytes() == b"kernels"
    assert backend.module.captures == [b"kernels"]  # the second process was given what the first one kept


@pytest.mark.usefixtures("cache")
def test_weights_stream_where_there_is_little_room(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle", "inside", streams=True)
    for asked, free, budget in (
        (None, 1 << 30, 1000),
        (None, 600, 500),
        (300, 600, 300),
        (0, 600, 0),
        (5000, 2000, 1000),
    ):
        backend, driver = backend_of(bundle, weight_budget=asked)
        driver.room = free
        for _ in range(2):  # loaded again, it has the same budget again
            engine = backend.stage("transformer").engine
            assert engine.weight_streaming_budget_v2 == budget
            # TensorRT for RTX cannot capture a run that streams.
            assert (engine.how.cuda_graph_strategy is None) == (budget < 1000)
            backend.release("transformer")
    driver.room = 600
    with pytest.raises(KontextError, match=r"cannot keep 0\.0 MB of its 0\.0 MB of weights on the GPU"):
        backend.stage("transformer")


@pytest.mark.usefixtures("cache")
def test_edits_with_streamed_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle", "inside", streams=True)
    pictures = [
        Pipeline(bundle, backend_of(bundle, weight_budget=budget)[0], low_memory=True).edit(
            PICTURE, "make it blue", steps=2
        )
        for budget in (None, 100)
    ]
    assert np.array_equal(*map(np.asarray, pictures))


@pytest.mark.parametrize(
    ("weights", "streams", "budget", "message"),
    [
        (
            "bound",
            False,
            300,
            "takes no weight budget: its weights are inputs, .* --engine-weights inside",
        ),
        (
            "inside",
            False,
            300,
            "sm89 engine of transformer takes no weight budget: engines with less than 1 GiB",
        ),
        ("inside", True, -1, "a weight budget is 0 bytes or more, not -1"),
    ],
)
def test_budgets_that_an_engine_does_not_take(
    tiny_bundle: Path, tmp_path: Path, weights: str, streams: bool, budget: int, message: str
) -> None:
    """Refused before any engine is loaded."""
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle", weights, streams=streams)
    with pytest.raises(KontextError, match=message):
        backend_of(bundle, weight_budget=budget)


def test_a_budget_reaches_the_backend(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(tensorrt, "TensorRTBackend", lambda *arguments: opened.extend(arguments[1:]))
    Pipeline.load(tiny_bundle, device="rtx", backend=TensorRTOptions(weight_budget=1 << 30))
    assert opened == ["rtx", TensorRTOptions(weight_budget=1 << 30)]


@pytest.mark.usefixtures("cache")
def test_sizes_that_an_engine_was_not_built_for(tiny_bundle: Path, tmp_path: Path) -> None:
    backend, _ = backend_of(engine_bundle(tiny_bundle, tmp_path / "bundle"))
    with pytest.raises(KontextError, match=r"engine of vae_encoder does not take image \[1, 3, 4096, 4096\]"):
        backend.run("vae_encoder", {"image": np.zeros((1, 3, 4096, 4096), np.float32)})
    with pytest.raises(KontextError, match="text_encoder takes input_ids, not ids"):
        backend.run("text_encoder", {"ids": np.ones((1, 77), np.int64)})


@pytest.mark.usefixtures("cache")
def test_a_damaged_engine_and_a_full_gpu(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle")
    backend, driver = backend_of(bundle)
    path = backend.engines["modulation"].path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(KontextError, match="is damaged: its SHA-256 is not the manifest's"):
        backend.stage("modulation")
    driver.room = 1000
    with pytest.raises(KontextError, match="out of GPU memory"):
        backend.stage("transformer")


@pytest.mark.usefixtures("cache")
def test_an_engine_that_the_library_refuses(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = engine_bundle(tiny_bundle, tmp_path / "bundle")
    export = pytest.importorskip("kontext.export.engines.build")
    entry = next(entry for entry in bundle.manifest["engines"] if entry["graph"] == "modulation")
    (bundle.folder / entry["file"]).write_bytes(b"torn")
    backend, _ = backend_of(export.record_engine(bundle, entry))
    with pytest.raises(KontextError, match="sm89 engine of modulation cannot be loaded: the plan is torn"):
        backend.stage("modulation")


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["rtx", "tensorrt"])
@pytest.mark.parametrize("weights", ["stripped", "bound", "inside"])
def test_engines_on_a_gpu(tiny_checkpoint: Path, tmp_path: Path, device: str, weights: str) -> None:
    """Built for this machine's GPU and run on it, against the same bundle's graphs in ONNX Runtime on the CPU."""
    pytest.importorskip(LIBRARIES[device].module)
    if not cuda_driver.has_gpu():
        pytest.skip("no NVIDIA GPU")
    from kontext.export.cli.main import main

    folder = tmp_path / "bundle"
    words = [str(tiny_checkpoint), "-o", str(folder), "--fp16", "--quiet"]
    assert main([*words, "--engine", device, "--engine-weights", weights]) == 0
    for images in (None, PICTURE, [PICTURE, PICTURE.rotate(90)]):
        ours, theirs = (
            Pipeline.load(folder, device=each).edit(images, "make it blue", steps=4)
            for each in (device, "cpu")
        )
        assert psnr(ours, theirs) > 35


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["rtx", "tensorrt"])
def test_streamed_weights_on_a_gpu(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """An engine gives the same picture whether its weights are on the GPU or half of them stream."""
    pytest.importorskip(LIBRARIES[device].module)
    if not cuda_driver.has_gpu():
        pytest.skip("no NVIDIA GPU")
    from kontext.export.cli import main as export_cli
    from kontext.export.engines import build

    monkeypatch.setattr(build, "STREAMED_BYTES", 0)
    folder = tmp_path / "bundle"
    words = [str(tiny_checkpoint), "-o", str(folder), "--fp16", "--quiet"]
    assert export_cli.main([*words, "--engine", device, "--engine-weights", "inside"]) == 0
    half = Bundle.open(folder).graphs["transformer"].weights.stat().st_size // 2
    pictures = [
        np.asarray(
            Pipeline.load(folder, device=device, backend=TensorRTOptions(weight_budget=budget)).edit(
                PICTURE, "make it blue", steps=4
            ),
            np.int64,
        )
        for budget in (None, half, 0)
    ]
    # Not bit for bit: TensorRT for RTX replaces kernels by better ones as it runs.
    assert max(np.abs(pictures[0] - other).max() for other in pictures[1:]) <= 2
