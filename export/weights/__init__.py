"""Plans the tensors of a bundle's weight files, and writes them as a stream."""
