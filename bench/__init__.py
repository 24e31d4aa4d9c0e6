"""Measurements: latency, cold start, export, and success of edits, beside diffusers on the same weights."""
