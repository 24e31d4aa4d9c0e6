"""Exports that do not trace: a bundle's own graphs, taken apart, stand for what the tracer would give."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def fast_trace(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`graphs.trace` of the random checkpoint's fp32 graphs in a moment; tracing takes 20 s."""
    monkeypatch.setattr("kontext.export.graphs.trace", untraced(tiny_bundle))


def untraced(bundle: Path) -> Callable[[str, object, str], object]:
    import onnx
    import onnx_ir as ir

    computes = json.loads((bundle / "manifest.json").read_text())["precision"]["networks"]

    def trace(name: str, config: object, compute: str) -> ir.Model:
        assert compute == computes[name]
        model = ir.from_proto(onnx.load(bundle / f"{name}.onnx", load_external_data=False))
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = None
        return model

    return trace


@pytest.fixture(scope="session")
def fp8_bundle(shared_folder: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> Path:
    """The export of the random checkpoint with --fp8, computing in fp32."""
    return quantized_bundle("fp8", shared_folder, tiny_checkpoint, tiny_bundle)


@pytest.fixture(scope="session")
def int8_bundle(shared_folder: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> Path:
    """The export of the random checkpoint with --int8, computing in fp32."""
    return quantized_bundle("int8", shared_folder, tiny_checkpoint, tiny_bundle)


@pytest.fixture(scope="session")
def int4_bundle(shared_folder: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> Path:
    """The export of the random checkpoint with --int4, computing in fp32."""
    return quantized_bundle("int4", shared_folder, tiny_checkpoint, tiny_bundle)


def quantized_bundle(flag: str, shared: Path, checkpoint: Path, bundle: Path) -> Path:
    """Made once for all workers of a test run, from the graphs of `bundle`."""
    from kontext.export.cli import main

    folder = shared / f"bundle-{flag}"
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("kontext.export.graphs.trace", untraced(bundle))
                assert main([str(checkpoint), "-o", str(folder), f"--{flag}", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="session")
def embedded_bundles(shared_folder: Path) -> Callable[[str], Path]:
    """The embedded model's export in a format such as bf16 or fp16-int4. Do not change it: copy it.

    Quantized ones are made from the graphs of the plain ones, so the embedded model is traced twice at the most.
    """

    def get(name: str) -> Path:
        from kontext.export.cli import main

        folder = shared_folder / f"embedded-{name}"
        compute, _, quantization = name.partition("-")
        plain = get(compute) if quantization else None
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                with pytest.MonkeyPatch.context() as patch:
                    if plain is not None:
                        patch.setattr("kontext.export.graphs.trace", untraced(plain))
                    flags = [f"--{flag}" for flag in name.split("-")]
                    assert main(["-o", str(folder), *flags, "--quiet"]) == 0
        return folder

    return get
