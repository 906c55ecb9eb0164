"""Running the graph: the session and its threads, tokens in, logits out, the key-value cache. Knows nothing of text."""
