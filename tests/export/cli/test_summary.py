"""The summary's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.export.cli.summary import counted, human, millions, peak_memory, render_summary
from kontext.export.exporter import Summary
from kontext.model.lora.read import LoraFile
from kontext.model.networks import NETWORKS
from kontext.quant.recipe import choose_recipe


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (24_000_000, "24.0 MB"), (23.8e9, "23.80 GB")],
)
def test_human(size: float, text: str) -> None:
    assert human(size) == text


def test_peak_memory_is_plausible() -> None:
    assert 10e6 < peak_memory() < 1e12


def test_what_is_said_of_a_mixed_resumed_export() -> None:
    summary = Summary(
        output=Path("/somewhere/out"),
        name="FLUX.1-Kontext-dev",
        parameters=16_900_000_000,
        recipe=choose_recipe(tuple(NETWORKS), 16_900_000_000, "fp16", "fp8"),
        sizes={"weights/transformer.safetensors": 9_000_000_000, "transformer.onnx": 1_000},
        seconds={"all": 100.0, "weights": 60.0, "graphs": 39.0},
        resumed=["weights/modulation.safetensors"],
        steps="8 steps by default, from Hyper-FLUX.safetensors: its name Hyper-FLUX",
        loras=[LoraFile(Path("Hyper-FLUX.safetensors"), 1.0, "", None, 12, [], ["alpha 4 from the header"])],
        ignored={"text_encoder": {"vision tower": 296}},
    )
    text = render_summary(summary)
    for part in (
        "16,900.0 M parameters, fp8 weights, fp16 compute",
        "text_encoder_2 computes in fp32",
        "  CLIP: not used: vision tower (296 tensors)",
        "9.00 GB",
        "from an earlier, unfinished export: weights/modulation.safetensors",
        "  with Hyper-FLUX.safetensors at 1: 12 updates\n    alpha 4 from the header\n    Hyper-FLUX is made for",
        "  8 steps by default, from Hyper-FLUX.safetensors: its name Hyper-FLUX\n",
        "100.0 s (weights 60.0 s, graphs 39.0 s)",
        "kontext-edit /somewhere/out",
    ):
        assert part in text


def next_command(compute: str, quantization: str | None = None, **more: Any) -> str:
    """What is printed after the export's figures."""
    recipe = choose_recipe(tuple(NETWORKS), 7_000_000, compute, quantization)
    seconds = {"all": 1.0, "weights": 1.0, "graphs": 0.0}
    summary = Summary(Path("/out"), "x", 7_000_000, recipe, {"weights/a": 1}, seconds, **more)
    return render_summary(summary).partition("The bundle is /out. ")[2]


@pytest.mark.parametrize(
    ("compute", "quantization"),
    [
        ("fp32", None),
        ("fp16", "int4"),
        ("fp32", "fp8"),
        ("bf16", None),
        ("bf16", "fp8"),
        ("fp32", "nvfp4"),
    ],
)
def test_what_it_suggests_runs_without_a_gpu(compute: str, quantization: str | None) -> None:
    """What ONNX Runtime's CPU does not run, `auto` gives to PyTorch, which exported it (test_choose.py)."""
    expected = 'Next:\n  kontext-edit /out -i in.png --prompt "make the circle red" -o out.png'
    assert next_command(compute, quantization) == expected


def test_what_it_suggests_for_linked_weights() -> None:
    """The torch backend does not read them."""
    assert "--backend torch" not in next_command("fp32", linked_weights=3)
    bf16 = next_command("bf16", linked_weights=3)
    assert bf16.startswith(
        "Next, on an NVIDIA GPU (ONNX Runtime has no kernels for bf16 on a CPU: export it again"
    )
    assert bf16.endswith(" -o out.png --device cuda")
    nothing = next_command("bf16", "nvfp4", linked_weights=3)
    assert nothing.startswith(
        "Nothing here runs it: ONNX Runtime has no kernels for NVFP4: export it again with"
    )


def test_what_was_linked_and_why_the_rest_was_not() -> None:
    summary = Summary(
        output=Path("/out"),
        name="x",
        parameters=7_000_000,
        recipe=choose_recipe(tuple(NETWORKS), 7_000_000, "fp32"),
        sizes={"weights/a": 28_000_000, "transformer.onnx": 9},
        seconds={"all": 1.0, "weights": 1.0, "graphs": 0.0},
        linked_weights=12,
        linked=1500,
        copied_weights={"changed by a LoRA": 3, "in BF16, not F32": 1200},
    )
    assert (
        "  --link-weights: 12 weights linked (1.5 kB), 1,203 copied (28.0 MB): 1,200 in BF16, not F32, 3 changed by a "
        "LoRA\n"
    ) in render_summary(summary)


def test_counts_and_parameters_in_words() -> None:
    assert [counted(number, "update") for number in (0, 1, 2)] == ["0 updates", "1 update", "2 updates"]
    assert [millions(number) for number in (1, 448, 5_200_000, 11_901_400_000)] == [
        "1 parameter",
        "448 parameters",
        "5.2 M parameters",
        "11,901.4 M parameters",
    ]
