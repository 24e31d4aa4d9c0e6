"""Step time and memory of quantized bundles."""
