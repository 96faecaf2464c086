"""Metrics of responses against right answers: exact match, F1, BLEU, pass@k and others, and a user's own."""
