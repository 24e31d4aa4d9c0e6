"""Sets of edits, read from local copies: published data sets in their own layouts, and folders of a user's own."""
