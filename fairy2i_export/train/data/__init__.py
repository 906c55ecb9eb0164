"""From texts to blocks of tokens."""
