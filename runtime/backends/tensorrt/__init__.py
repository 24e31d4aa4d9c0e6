"""The TensorRT backend: a bundle's compiled engines."""
