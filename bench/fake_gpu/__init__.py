"""A GPU that computes nothing: PyTorch's CUDA build and Triton run on it whole, on a machine that has no GPU.

Everything around the arithmetic is real: devices of tensors, the caching allocator within the memory of a given card,
streams and pinned copies, what may be done while a graph is captured, Triton's compiler and launches with the shared
memory of a given architecture. Numbers are not: every number that comes back from the device is zero, and a
millisecond is every time.
"""
