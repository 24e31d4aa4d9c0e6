"""Number formats and recipes."""
