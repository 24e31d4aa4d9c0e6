"""Which tensors a bundle stores and how, and writing them as a stream."""
