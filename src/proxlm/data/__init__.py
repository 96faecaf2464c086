"""Reading files into prompts, texts, token ids and training examples."""
