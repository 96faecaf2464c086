"""Smaller models: weights, heads, channels and blocks left out, and what that costs."""
