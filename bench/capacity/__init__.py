"""How many GPUs hold a rate of edits, and what an edit costs: a fleet simulated from measured times."""
