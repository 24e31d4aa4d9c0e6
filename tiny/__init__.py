"""The embedded model: procedural scenes and edits, the judge, training, and the trained weights."""
