"""Generation: scheduler, key-value cache, decoders, sampling."""
