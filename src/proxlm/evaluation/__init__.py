"""Measuring models: pure metrics, and models × prompts → a table."""
