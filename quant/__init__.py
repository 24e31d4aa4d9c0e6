"""Number formats and recipes: how a weight is stored, and which weight is stored how."""
