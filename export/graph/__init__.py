"""From a network in PyTorch to an ONNX graph: tracing, passes, quantized linears, weights bound by offset."""
