"""Runs example edits for quantization: statistics of inputs, layers' sensitivity, a plan for a memory budget."""
