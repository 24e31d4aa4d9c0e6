"""A model as other programs keep it: one file or folder for each layout of `kontext-export --to`."""
