"""Supervised training: the next-token loss on examples."""
