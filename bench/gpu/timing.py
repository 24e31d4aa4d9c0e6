"""Times on a device, and the device's limits: copy bandwidth, and the rates of bf16 and FP8 matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...kernels.launch import FP8_CAPABILITY, device_capability
from ...kernels.numeric import quantize_rows


@dataclass(frozen=True)
class DeviceTimer:
    """Median times of repeated runs, by CUDA events on a GPU and by the wall clock on a CPU."""

    device: torch.device
    repeats: int = 10

    def milliseconds(self, run: Callable[[], object], repeats: int | None = None) -> float:
        """The median of a run's time, after one run for compilation and set-up."""
        run()
        times = []
        for _ in range(repeats or self.repeats):
            if self.device.type == "cuda":
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                stop.record()
                stop.synchronize()
                times.append(start.elapsed_time(stop))
            else:
                begin = time.perf_counter()
                run()
                times.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(times)

    def replayed(self, run: Callable[[], object], runs: int = 1) -> float:
        """The same, replayed from a CUDA graph of `runs` runs so that no launch waits for Python; time of one run."""
        if self.device.type != "cuda":
            return self.milliseconds(run)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(runs):
                run()
        return self.milliseconds(graph.replay) / runs


def device_limits(timer: DeviceTimer, side: int) -> dict[str, Any]:
    """GB/s of a large copy (bytes read plus written), and TFLOP/s of products of two `side` × `side` matrices.

    On random data: zeros run faster than real data.
    """
    device = timer.device
    source = torch.randn(side * side * 4, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    copied = timer.milliseconds(lambda: target.copy_(source))
    found: dict[str, Any] = {"copy_gb_s": 4 * source.numel() / copied / 1e6}
    a = torch.randn(side, side, device=device).to(torch.bfloat16)
    b = torch.randn(side, side, device=device).to(torch.bfloat16)
    operations = 2 * side**3
    found["bf16_tflop_s"] = operations / timer.milliseconds(lambda: a @ b) / 1e9
    if device.type == "cuda" and device_capability(device) >= FP8_CAPABILITY:
        (a8, a_scale), (b8, b_scale) = quantize_rows(a.float(), "fp8"), quantize_rows(b.float(), "fp8")

        def product() -> torch.Tensor:
            return torch._scaled_mm(
                a8,
                b8.t(),
                scale_a=a_scale[:, None],
                scale_b=b_scale[None],
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )

        found["fp8_tflop_s"] = operations / timer.milliseconds(product) / 1e9
    return found
