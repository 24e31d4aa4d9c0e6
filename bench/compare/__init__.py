"""Two results of the same benchmark, told apart from noise: `kontext-bench compare`."""
