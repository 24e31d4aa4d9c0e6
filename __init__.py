"""Exports FLUX.1 Kontext checkpoints as deployable bundles, and edits pictures with them."""
