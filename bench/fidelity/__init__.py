"""How close quantized models stay to the reference, beside other libraries' quantization."""
