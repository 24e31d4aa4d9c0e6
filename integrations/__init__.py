"""FLUX.1 Kontext in other programs' Python libraries."""
