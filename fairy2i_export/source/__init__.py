"""Where weights and tokens come from: checkpoints, safetensors, the hub, tokenizer files, transformers."""
