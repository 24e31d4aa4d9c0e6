"""From a checkpoint to a bundle: graphs, weight binding, the bundle writer and `kontext-export`."""
