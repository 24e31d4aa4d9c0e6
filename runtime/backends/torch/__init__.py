"""The PyTorch backend: the transformer on Triton kernels, with offloading."""
