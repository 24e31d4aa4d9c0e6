"""Engines that run a bundle's graphs, and what each device needs of ONNX Runtime."""

from __future__ import annotations

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Device → ONNX Runtime's execution providers, the first of which must be there."""

DEVICES = ("auto", *PROVIDERS)

BACKENDS = ("onnxruntime", "torch")
