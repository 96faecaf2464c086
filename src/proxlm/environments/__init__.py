"""Conversations with an environment: a game, a tool, another speaker."""
