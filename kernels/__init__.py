"""Triton kernels of the transformer with reference implementations in PyTorch, as operators of `torch.ops.kontext`.

An operator runs its reference implementation on CPU tensors and its kernel on CUDA tensors. Each has a fake
implementation for torch.compile, CUDA graphs and export. `python -P -m kontext.kernels.compile` compiles all kernels
without a GPU.
"""
