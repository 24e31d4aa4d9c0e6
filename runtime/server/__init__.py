"""Serving a bundle from NVIDIA Triton Inference Server: the tensors, the edits of a batch, the server's models.

`kontext-export BUNDLE --triton REPO` copies the lean runtime, this folder with it, into the model repository.
"""
