"""Language models, critics and references, built on transformers."""
