"""Loaded at Python's start under a fake GPU: replaces convolutions, because cuDNN would look for a real GPU.

Outputs have the right size; the workspace that cuDNN would take is missing.
"""

from __future__ import annotations

from typing import Any

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]


def sides(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """torch.nn.functional.conv2d; on the fake GPU the output is uninitialized."""
    if not x.is_cuda:
        return original_conv2d(x, weight, bias, stride, padding, dilation, groups)
    size = [
        (
            x.shape[axis + 2]
            + 2 * sides(padding)[axis]
            - sides(dilation)[axis] * (weight.shape[axis + 2] - 1)
            - 1
        )
        // sides(stride)[axis]
        + 1
        for axis in (0, 1)
    ]
    return x.new_empty((x.shape[0], weight.shape[0], *size))


if torch is not None:
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    original_conv2d = torch.nn.functional.conv2d
    torch.nn.functional.conv2d = conv2d  # type: ignore[assignment]
