"""What `auto` takes on which machine: cards are stub CUDA drivers', and what is installed is made up."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.runtime import Pipeline, TorchOptions
from kontext.runtime.backends import choose as choosing
from kontext.runtime.backends.choose import Machine, choose, ways
from kontext.runtime.backends.plugins import WHEELS
from kontext.runtime.bundle import Bundle
from kontext.runtime.cli import main
from kontext.runtime.cuda_driver import find_gpu

CARDS = {"sm_75": 8, "sm_86": 12, "sm_89": 16, "sm_90": 80, "sm_120": 32}
"""Architecture → gigabytes."""

EVERYTHING = {"onnxruntime-gpu": "1.31.1", "torch": "2.13.0", "tensorrt-rtx": "1.7.1"}


@pytest.fixture(scope="module")
def stub_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libcuda.so.1 of a GPU whose properties are environment variables."""
    pytest.importorskip("triton")
    from kontext.bench.fake_gpu.libraries import LIBRARIES, build_libraries

    folder = tmp_path_factory.mktemp("driver")
    build_libraries(folder)
    # Under its own name it would from then on be this process's driver, since it stays loaded.
    renamed = folder / "libstub.so.1"
    driver = (folder / LIBRARIES["driver"]).read_bytes()
    renamed.write_bytes(driver.replace(LIBRARIES["driver"].encode(), renamed.name.encode()))
    return renamed


@pytest.fixture
def card(stub_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine have a card."""
    pytest.importorskip("triton")
    from kontext.bench.fake_gpu.wrapper import properties

    def insert(architecture: str, gigabytes: float = 0) -> Machine:
        number = int(architecture.removeprefix("sm_"))
        shared = properties(int((gigabytes or CARDS[architecture]) * 1e9), 89)
        for name, value in {**shared, "FAKE_GPU_ARCHITECTURE": str(number)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("kontext.runtime.cuda_driver.library_name", lambda: str(stub_driver))
        return Machine(find_gpu(), EVERYTHING, torch_cuda=True, triton=True)

    return insert


def bundle_in(folder: Path, **precision: Any) -> Bundle:
    """A bundle that says of itself that it is in other formats."""
    bundle = Bundle.open(folder)
    return dataclasses.replace(bundle, manifest={**bundle.manifest, "precision": precision})


@pytest.fixture
def bf16(tiny_bundle: Path) -> Bundle:
    return bundle_in(tiny_bundle, networks=dict.fromkeys(Bundle.open(tiny_bundle).graphs, "bf16"), layers={})


def title(bundle: Bundle, machine: Machine) -> str:
    return choose(bundle, machine).way.title


@pytest.mark.parametrize("architecture", CARDS)
def test_the_card_is_what_the_driver_says(architecture: str, card: Any) -> None:
    gpu = card(architecture).gpu
    assert (gpu.capability, gpu.memory) == (int(architecture[3:]), CARDS[architecture] * 10**9)


@pytest.mark.parametrize(
    ("architecture", "bf16_takes", "fp32_takes"),
    [
        ("sm_75", "PyTorch on the CPU", "ONNX Runtime's CUDA provider"),
        *((each, *["PyTorch with Triton kernels"] * 2) for each in ("sm_86", "sm_89", "sm_90", "sm_120")),
    ],
)
def test_with_everything_installed(
    architecture: str, bf16_takes: str, fp32_takes: str, card: Any, bf16: Bundle, tiny_bundle: Path
) -> None:
    """Triton's kernels from Ampere on; Turing does not compute in bf16 at all."""
    pytest.importorskip("torch")
    machine = card(architecture)
    assert title(bf16, machine) == bf16_takes
    assert title(Bundle.open(tiny_bundle), machine) == fp32_takes


def test_without_pytorch_it_is_the_cuda_provider_and_says_what_is_faster(card: Any, bf16: Bundle) -> None:
    machine = dataclasses.replace(card("sm_89"), packages={"onnxruntime-gpu": "1.31.1"}, torch_cuda=False)
    choice = choose(bf16, machine)
    assert choice.way.title == "ONNX Runtime's CUDA provider"
    assert choice.way.device == "cuda"
    assert "faster: PyTorch with Triton kernels (PyTorch is not installed: pip install" in str(choice)


def test_engines_of_this_card_are_first(card: Any, bf16: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without them the command that builds them is what would be faster."""
    pytest.importorskip("torch")
    machine = card("sm_89")
    choice = choose(bf16, machine)
    assert f"kontext-export {bf16.folder} --engine rtx --target sm89" in str(choice)
    monkeypatch.setattr(choosing, "choose_engines", lambda *_: {})
    assert title(bf16, machine) == "TensorRT for RTX engines"
    without = dataclasses.replace(machine, packages={"torch": "2.13.0"})
    assert title(bf16, without) == "PyTorch with Triton kernels"


def test_weights_stay_in_host_memory_where_they_do_not_fit(
    card: Any, bf16: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLUX.1 Kontext in bf16 by the planner: 18.8 GB whole (docs/planning.md), 1.9 GB with --offload."""
    pytest.importorskip("torch")
    from kontext.runtime.backends.torch import peaks

    monkeypatch.setattr(peaks, "predict_peaks", lambda _: peaks.Peaks(18_800_000_000, 1_900_000_000))
    taken = {}
    for gigabytes in (1, 8, 12, 16, 24, 32):
        try:
            taken[gigabytes] = getattr(choose(bf16, card("sm_89", gigabytes)).way.options, "offload", None)
        except KontextError:
            taken[gigabytes] = None
    assert taken == {1: None, 8: True, 12: True, 16: True, 24: False, 32: False}


def test_planned_peaks_are_the_planners(tiny_bundle: Path) -> None:
    """Against the plan that `--fit` makes: its largest stage, with this bundle's weights."""
    pytest.importorskip("torch")
    from kontext.quant.memory import CUDA, Workload, demands
    from kontext.runtime.backends.torch.backend import read_config
    from kontext.runtime.backends.torch.peaks import predict_peaks

    bundle = Bundle.open(tiny_bundle)
    config = read_config(bundle)
    side = config.autoencoder.sample_size
    needs = demands(config, dict.fromkeys(bundle.graphs, "fp32"), Workload(side, side, 1), CUDA)
    peaks = predict_peaks(bundle)
    sizes = {name: entry.weights.stat().st_size for name, entry in bundle.graphs.items()}
    assert peaks.whole == pytest.approx(max(needs[name].bytes + sizes[name] for name in sizes), rel=0.001)
    assert CUDA.overhead < peaks.offloaded < peaks.whole


def test_on_a_cpu(bf16: Bundle, tiny_bundle: Path) -> None:
    machine = Machine(None, {"onnxruntime": "1.32.0", "torch": "2.13.0"})
    assert title(Bundle.open(tiny_bundle), machine) == "ONNX Runtime on the CPU"
    assert title(bf16, machine) == "PyTorch on the CPU"
    with_openvino = dataclasses.replace(machine, packages={**machine.packages, "openvino": "2026.4"})
    assert title(bf16, with_openvino) == "OpenVINO"  # whatever the processor: ONNX Runtime does not run it
    assert title(Bundle.open(tiny_bundle), with_openvino) == "ONNX Runtime on the CPU"
    with pytest.raises(
        KontextError,
        match=r"nothing that is installed here runs .*OpenVINO is not installed: pip install .*openvino",
    ) as caught:
        choose(bf16, Machine(None, {"onnxruntime": "1.32.0"}))
    assert "\n" not in str(caught.value)
    with pytest.raises(
        KontextError,
        match=r"nothing that is installed here runs .*: ONNX Runtime is not installed: pip install .*cpu",
    ):
        choose(Bundle.open(tiny_bundle), Machine())


def test_openvino_alone_runs_everything(bf16: Bundle, tiny_bundle: Path) -> None:
    """Without ONNX Runtime, or with half of it, on a processor with or without units for bf16."""
    for units in (False, True):
        alone = Machine(None, {"openvino": "2026.4"}, bf16_units=units)
        half = dataclasses.replace(
            alone, packages={"openvino": "2026.4", "onnxruntime": "1.32.0"}, onnxruntime_complete=False
        )
        for machine in (alone, half):
            assert title(bf16, machine) == title(Bundle.open(tiny_bundle), machine) == "OpenVINO"


def test_devices_show_their_table_where_nothing_works(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Machine, "here", Machine)
    assert main(["devices", str(tiny_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  ONNX Runtime on the CPU: no: ") for line in lines)
    assert lines[-1].startswith("nothing that is installed here runs ")


def test_the_same_by_name_is_the_same(tiny_bundle: Path) -> None:
    """Flags are those of the options: an OpenVINO in bf16 is named with what it computes in."""
    from kontext.runtime.devices_command import flags

    way = choosing.Way("x", choosing.OpenVINOOptions(compute="bf16"), "openvino")
    assert flags(way) == ["--backend", "openvino", "--device", "openvino", "--compute", "bf16"]


@pytest.mark.parametrize(
    ("layer", "compute", "takes"),
    [
        ("fp32", "fp32", "ONNX Runtime on the CPU"),  # exported for exactness
        ("int4", "fp32", "OpenVINO in bf16"),
        ("fp8", "fp32", "OpenVINO in bf16"),
        ({"format": "int8", "activations": "int8"}, "fp32", "ONNX Runtime on the CPU"),  # fused there alone
        ({"format": "int8", "activations": "int8", "rounding": "static"}, "fp32", "OpenVINO in bf16"),
        ({"format": "int8"}, "fp32", "OpenVINO in bf16"),
        ("bf16", "bf16", "OpenVINO"),
        ("fp16", "fp16", "OpenVINO"),
    ],
)
def test_on_a_cpu_with_units_for_bf16(layer: Any, compute: str, takes: str, tiny_bundle: Path) -> None:
    graphs = Bundle.open(tiny_bundle).graphs
    bundle = bundle_in(
        tiny_bundle, networks=dict.fromkeys(graphs, compute), layers={"transformer": {"x.weight": layer}}
    )
    machine = Machine(None, {"onnxruntime": "1.32.0", "openvino": "2026.4"}, bf16_units=True)
    choice = choose(bundle, machine)
    assert choice.way.title == takes
    assert getattr(choice.way.options, "compute", None) == ("bf16" if takes.endswith("bf16") else None)


def test_what_does_not_start_is_left_out_with_a_warning(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that looks as if it worked, and refuses when it is opened."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    first = choosing.Way("Broken", TorchOptions(), "cuda")
    monkeypatch.setattr(choosing, "WAYS", (lambda *_: first, choosing.onnxruntime_on_cpu))
    monkeypatch.setattr(choosing, "fit_torch", lambda way, *_: way)
    monkeypatch.setattr(Machine, "here", lambda: Machine(FAKE, {"onnxruntime": "1.32.0"}))
    with pytest.warns(UserWarning, match="Broken does not start: "):
        pipe = Pipeline.load(tiny_bundle)
    assert pipe.choice is not None
    assert pipe.choice.way.title == "ONNX Runtime on the CPU"


FAKE = choosing.Gpu("Fake GPU", 89, 10**10)


def test_a_name_leaves_no_choice(tiny_bundle: Path) -> None:
    assert Pipeline.load(tiny_bundle, device="cpu").choice is None
    assert Pipeline.load(tiny_bundle, backend="onnxruntime").choice is None


def test_every_way_has_a_verdict(bf16: Bundle, card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    card("sm_89")
    assert main(["devices", str(bf16.folder)]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA GPU: Fake GPU, sm_89, 16.00 GB" in out
    for way in ways(Bundle.open(bf16.folder), Machine.here()):
        assert f"{way.title}: " in out
    assert out.count("\n* ") == 1
    assert out.splitlines()[-1].startswith(f"the same by name: kontext-edit {bf16.folder} --")


def test_a_plugin_that_is_not_installed(bf16: Bundle) -> None:
    found = {way.device: way for way in ways(bf16, Machine())}
    for device in WHEELS:
        assert found[device].refusal


def test_pytorch_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "torch"
    module.mkdir()
    (module / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: Spec(str(module / "__init__.py")))
    for text, expected in (
        ("cuda: Optional[str] = '13.0'\n", True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '7'\n", False),
        ("__version__ = '2.13.0'\ncuda = '12.6'\n", True),
    ):
        (module / "version.py").write_text(text)
        assert choosing.torch_has_cuda() is expected
    shutil.rmtree(module)
    assert not choosing.torch_has_cuda()


class Spec:
    def __init__(self, origin: str) -> None:
        self.origin = origin
