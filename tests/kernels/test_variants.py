"""The list of kernels to compile: complete for a step of the transformer and for every architecture."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

import kontext.kernels
from kontext.kernels import compile, dequantize_4bit, launch, variants


def test_every_architecture_has_its_variants() -> None:
    """FP8 from Ada on; every product names the instructions that it must come out with."""
    for arch in compile.ARCHITECTURES:
        listed = list(variants.variants(arch))
        # Before Ada FP8 weights are unpacked, and nothing more.
        computing = [each for each in listed if not each.name.startswith("dequantize")]
        assert any("fp8" in each.name for each in computing) == (arch >= 89)
        for each in listed:
            assert bool(each.operands) == ("gemm" in each.name or each.name.startswith("attention")), (
                each.name
            )
            assert len(each.instructions(arch)) == len(each.operands)


def launch_functions() -> dict[str, Callable[..., Any]]:
    """Operator → its launch function."""
    found = {}
    for module in pkgutil.iter_modules(kontext.kernels.__path__):
        for name, function in vars(importlib.import_module(f"kontext.kernels.{module.name}")).items():
            if name.startswith("launch_"):
                found[name.removeprefix("launch_")] = function
    return found


def test_every_launch_of_a_step_is_among_the_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step runs on a CPU without starting kernels; the key of each launch must be among the compiled ones."""
    from kontext.bench.gpu import step
    from kontext.model.config import TransformerConfig
    from kontext.runtime.backends.torch import linear, transformer, weights

    config = TransformerConfig(
        hidden_size=128, num_heads=2, num_double_blocks=1, num_single_blocks=1, mlp_ratio=2.0, axes_dim=(8, 28, 28),
        text_dim=64,
    )  # fmt: skip
    started: dict[str, str] = {}
    monkeypatch.setattr(launch.Launch, "run", lambda self: started.setdefault(self.key(), self.name))
    launches = launch_functions()
    for module in (linear, transformer, weights):
        for name in [name for name in vars(module) if name.endswith("_op")]:
            monkeypatch.setattr(module, name, launches[name.removesuffix("_op")])
    sizes = variants.Sizes(hidden=128, heads=2, mlp=256, ranks=())
    # A CPU's launches are Hopper's, and those of NVFP4, which Hopper lacks, Blackwell's.
    compiled = {variant.launch.key() for arch in (90, 100) for variant in variants.variants(arch, sizes)}
    device = torch.device("cpu")
    model = step.random_network(config, device, torch.bfloat16)
    inputs = step.random_inputs(config, 5, 24, 20, device, torch.bfloat16)
    for formats in (*step.SIDES.values(), ("fp8", "fp8", "int8"), ("int4", "16-bit", "fp8")):
        step.on_kernels(model, *formats)(**inputs)
    missing = {key: name for key, name in started.items() if key not in compiled}
    assert not missing
    assert len(started) > 12
    # Candidates that only a GPU would measure, for every linear of the blocks and for those of the other networks.
    listed = {variant.name for variant in variants.variants(90, sizes)}
    linears = {name.partition(", ")[2] for name in listed if name.startswith("int4_gemm")}
    assert {f"int4_to_fp8, {name}" for name in linears} <= listed
    for depth, channels in ((768, 3072), (10240, 4096)):
        packed, scales = variants.int4_weight(depth, channels, torch.bfloat16)
        out = variants.meta(depth, channels, dtype=torch.bfloat16)
        assert dequantize_4bit.plan_dequantize_4bit(packed, None, scales, None, False, out).key() in compiled
