"""The GPU benchmark: kernels and the full-size step."""
