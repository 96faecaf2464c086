"""Classifiers on a language model's features: fitted by scikit-learn, kept and applied as plain arrays."""
