"""Triton kernels of the transformer, each beside its plain PyTorch meaning, as operators of `torch.ops.kontext`.

On CPU tensors an operator runs its meaning, on CUDA tensors its kernel; both have a fake implementation, so that
torch.compile, CUDA graphs and export see through them. `python -m kontext.kernels.compile` compiles all of them with
no GPU.
"""
