"""Searching a job's settings: the space, its trials in optuna's storage, and what they say."""
