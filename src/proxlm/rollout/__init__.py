"""Sampling responses: random numbers, filters, and the native engine."""
