"""An exhausted GPU: what is said would fit, against the exporter's planner."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.calibration.plan import make_plan  # noqa: E402
from kontext.model.config import KontextConfig  # noqa: E402
from kontext.model.networks import NETWORKS, weight_shapes  # noqa: E402
from kontext.quant.gpus import find_target  # noqa: E402
from kontext.quant.memory import Workload  # noqa: E402
from kontext.runtime import TorchOptions  # noqa: E402
from kontext.runtime.backends.torch import advice  # noqa: E402
from kontext.runtime.backends.torch.advice import Device, advise  # noqa: E402
from kontext.runtime.backends.torch.backend import TorchBackend  # noqa: E402
from kontext.runtime.backends.torch.transformer import Step  # noqa: E402
from kontext.runtime.bundle import Bundle  # noqa: E402
from kontext.runtime.cli import main  # noqa: E402

FLUX = KontextConfig(name="flux")
COMPUTE = dict.fromkeys(NETWORKS, "bf16")
SQUARE = Workload(1024, 1024)


@pytest.fixture(scope="module")
def weights() -> dict[str, int]:
    """FLUX's transformer in bf16."""
    return {name: 2 * math.prod(shape) for name, shape in weight_shapes("transformer", FLUX).items()}


def device(total: float, free: float | None = None, capability: int = 89) -> Device:
    return Device(int((total if free is None else free) * 1e9), int(total * 1e9), capability)


def gigabytes(text: str, what: str) -> float:
    match = re.search(rf"{what}([\d.]+) ?GB", text)
    assert match, text
    return float(match[1])


def test_a_card_of_12_gb(weights: dict[str, int]) -> None:
    text = advise(FLUX, COMPUTE, "transformer", weights, SQUARE, device(12, 11.2))
    assert "\n" not in text
    assert gigabytes(text, r"\(") == pytest.approx(
        17.24, abs=0.01
    )  # 8.62 B parameters without the modulation
    assert 17.3 < gigabytes(text, "takes about ") < 21
    assert 1.5 < gigabytes(text, r"--offload \(about ") < 4
    assert "kontext-export MODEL --fit 11.8GB --gpu sm_89 (from " in text
    assert text.endswith("or a smaller --size")


def test_the_bundle_that_fits_is_what_the_planner_says(weights: dict[str, int]) -> None:
    """The smallest budget here and there, and a plan for the budget that is advised."""
    text = advise(FLUX, COMPUTE, "transformer", weights, SQUARE, device(12))
    with pytest.raises(KontextError, match="smallest budget") as caught:
        make_plan(FLUX, 10**9, find_target("sm_89"), SQUARE)
    assert gigabytes(text, r"\(from ") == pytest.approx(gigabytes(str(caught.value), "is "), rel=0.01)
    plan = make_plan(FLUX, int(gigabytes(text, "--fit ") * 1e9), find_target("sm_89"), SQUARE)
    assert plan.peak <= 12e9


def test_nothing_is_advised_that_does_not_fit_or_is_done_already(weights: dict[str, int]) -> None:
    small = advise(FLUX, COMPUTE, "transformer", weights, SQUARE, device(1.5))
    assert small.endswith("what would fit: a smaller --size")
    offloaded = advise(FLUX, COMPUTE, "transformer", weights, SQUARE, device(5), offload=True)
    assert "--offload" not in offloaded
    assert gigabytes(offloaded, r"\(") < 1
    # Kept keys and values: 57 blocks, 4096 tokens, 2 x 3072 channels, 2 bytes.
    keeping = advise(FLUX, COMPUTE, "transformer", weights, SQUARE, device(20), reuse=True)
    without = gigabytes(keeping, r"no --reuse-reference \(about ")
    assert gigabytes(keeping, "takes about ") - without == pytest.approx(
        57 * 4096 * 2 * 3072 * 2 / 1e9, abs=0.02
    )
    assert "no --reuse-reference" not in advise(
        FLUX, COMPUTE, "transformer", weights, SQUARE, device(12), reuse=True
    )


def test_the_edit_that_was_asked_for(weights: dict[str, int]) -> None:
    work = advice.workload(
        FLUX, "transformer", {"target": (2, 8192, 64), "reference": (2, 16000, 64), "rope_cos": (24704, 64)}
    )
    assert (work.width * work.height, work.references, work.batch) == (8192 * 256, 2, 2)
    text = advise(FLUX, COMPUTE, "transformer", weights, work, device(48, 24, 120))
    assert "--fit 24.6GB --gpu sm_120 --size 1456x1456 --references 2 --batch 2" in text
    assert text.endswith("or a smaller --size or fewer --num-images")
    decoder = advice.workload(FLUX, "vae_decoder", {"latents": (1, 16, 128, 96)})
    assert (decoder.width, decoder.height) == (768, 1024)
    encoder = advice.workload(FLUX, "vae_encoder", {"image": (1, 3, 1024, 768)})
    assert encoder == decoder.__class__(768, 1024, 1, 1, 1)
    assert advice.workload(FLUX, "modulation", {"timestep": (56,)}).steps == 56
    assert advice.workload(FLUX, "text_encoder", {"input_ids": (3, 77)}).batch == 3


@pytest.fixture
def small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 2 GB, of which 1.2 GB are free."""
    monkeypatch.setattr(Device, "of", classmethod(lambda _cls, _device: device(2, 1.2)))


@pytest.mark.usefixtures("small_card")
@pytest.mark.parametrize(
    "fault",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["allocator", "driver", "library"],
)
def test_the_command_line_says_it_in_one_line(
    fault: RuntimeError,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def exhausted(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(advice.Device, "budget", property(lambda _: 10**9))
    monkeypatch.setattr(Step, "embed", exhausted)
    Image.new("RGB", (128, 128)).save(tmp_path / "in.png")
    words = [str(tiny_bundle), "-i", str(tmp_path / "in.png"), "-p", "x", "-o", str(tmp_path / "out.png")]
    assert main([*words, "--backend", "torch", "--device", "cpu", "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of GPU memory: transformer takes about ")
    assert "--offload (about " in error
    assert "kontext-export MODEL --fit 1GB" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("small_card")
def test_other_networks_and_other_faults(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="--offload saves no memory on a CPU"):
        backend = TorchBackend(Bundle.open(tiny_bundle), "cpu", TorchOptions(offload=True))

    def exhausted(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend, "load_network", exhausted)
    with pytest.raises(KontextError, match="out of GPU memory: text_encoder takes about") as caught:
        backend.run("text_encoder", {"input_ids": torch.zeros(1, 77, dtype=torch.int64)})
    assert "--offload" not in str(caught.value)

    def broken(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(backend, "load_network", broken)
    with pytest.raises(RuntimeError, match="something else"):
        backend.run("text_encoder", {"input_ids": torch.zeros(1, 77, dtype=torch.int64)})
