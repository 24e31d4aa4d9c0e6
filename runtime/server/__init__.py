"""Serving a bundle from NVIDIA Triton Inference Server: tensors, batches of edits, the server's models.

`kontext-export BUNDLE --triton REPO` copies the runtime, with this folder, into the model repository.
"""
