"""A fake GPU: stub CUDA libraries on which PyTorch's CUDA build and Triton run on a machine without a GPU."""
