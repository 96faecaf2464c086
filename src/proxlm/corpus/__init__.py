"""The steps of `proxlm data`: pure functions of texts, what they find in a corpus, and the passes over it."""
