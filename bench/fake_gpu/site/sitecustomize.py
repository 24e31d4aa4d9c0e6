"""What Python loads first under a fake GPU: convolutions without cuDNN, which looks for a GPU by itself.

Their outputs are as large as they are, without the workspace that cuDNN would choose.
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
    """torch.nn.functional.conv2d's output with nothing in it."""
    if not x.is_cuda:
        return plain(x, weight, bias, stride, padding, dilation, groups)
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
    plain = torch.nn.functional.conv2d
    torch.nn.functional.conv2d = conv2d  # type: ignore[assignment]
