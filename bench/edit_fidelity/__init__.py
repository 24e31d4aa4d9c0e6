"""What edits keep and what they do: kept regions, text, characters, chains of edits, few steps, and other seeds."""
