"""INT8 weights: integers from -127 to 127 with one scale per output channel.

At eight bits the plain scale, which just reaches the largest weight, is within 2 % of the best one for normal weights.
-128 is left out, so that a weight and its negative are stored alike.
"""

from __future__ import annotations

from .base import InputRounding
from .per_channel import PerChannel

INT8 = PerChannel(
    name="int8",
    flag_help="as INT8 with a scale per output channel",
    dtype="I8",
    largest=127,
    spacing=lambda units: units.new_ones(()),
    input_roundings=(InputRounding.DYNAMIC, InputRounding.STATIC),
    runs_on_cpu=True,
    cpu_memory=1.25,  # packed for its kernels (ONNX Runtime 1.32)
    kernel_inputs=("int8",),
)
