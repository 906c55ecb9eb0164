"""What a decoder is, told by a config.json: sizes, names of modules, rotary embeddings. No file and no graph."""
