"""Serving benchmark, and Triton Inference Server on this machine."""
