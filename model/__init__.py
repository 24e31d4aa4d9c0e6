"""FLUX.1 Kontext in PyTorch, written for deployment: fused QKV, RoPE tables as inputs, a separate modulation
network; and readers of its checkpoints, which load PyTorch only when they read weights."""
