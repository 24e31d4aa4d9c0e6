"""The embedded model: procedural scenes, edits, the judge, the training script and the trained weights."""
