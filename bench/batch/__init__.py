"""`kontext-bench batch`: what `kontext-batch` costs beside the bare step, and how it scales over workers of Ray."""
