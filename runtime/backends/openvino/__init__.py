"""Runs a bundle's graphs in OpenVINO: on processors with bf16 units, and on Intel GPUs and NPUs."""
