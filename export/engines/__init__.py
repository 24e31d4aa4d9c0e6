"""TensorRT engines built from a bundle's graphs."""
