"""From files to prompts, texts, token ids and training examples."""
