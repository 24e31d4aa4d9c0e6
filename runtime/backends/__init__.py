"""Backends that run a bundle's graphs, and what each device needs of them."""

from __future__ import annotations

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Device → ONNX Runtime's execution providers, the first of which must be there."""

ENGINE_DEVICES = ("rtx", "tensorrt")
"""Devices that run the bundle's compiled engines, with TensorRT for RTX or TensorRT."""

DEVICES = ("auto", *PROVIDERS, *ENGINE_DEVICES)

BACKENDS = ("onnxruntime", "torch")
