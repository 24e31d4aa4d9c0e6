"""FLUX.1 Kontext at its full size, with synthetic weights."""
