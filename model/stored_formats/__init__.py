"""Quantized weights in safetensors files: a module of its own for each format, which checks and decodes it.

decode_modules(path, tensors, layer_notes(path, metadata))  # names and shapes as if nothing were quantized
"""
