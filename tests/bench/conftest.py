"""The random checkpoint's bundles in every quantized format, over the graphs of its fp32 bundle."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_bundle: Path
) -> dict[str, Path]:
    """Format → bundle. Do not change them: copy them."""
    onnx = pytest.importorskip("onnx")
    import onnx_ir as ir

    from kontext.export import cli

    def trace(name: str, config: object, compute: str) -> ir.Model:
        model = ir.from_proto(onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False))
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = None
        return model

    folder = tmp_path_factory.mktemp("fidelity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kontext.export.graphs.trace", trace)
        for name in ("fp8", "int8", "int4"):
            words = [str(tiny_checkpoint), "-o", str(folder / name), f"--{name}", "--fp32", "--quiet"]
            assert cli.main(words) == 0
    return {"fp32": tiny_bundle, "fp8": folder / "fp8", "int8": folder / "int8", "int4": folder / "int4"}
