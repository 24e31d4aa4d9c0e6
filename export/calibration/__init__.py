"""What quantization learns from example edits: input statistics, the layers' sensitivity, a plan for a budget."""
