"""The lean runtime: bundle reader, tokenizers, sampler, ONNX Runtime backend, pipeline and `kontext-edit`."""
