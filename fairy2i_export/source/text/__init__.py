"""Texts and the tokens that a checkpoint's tokenizer makes of them."""
