"""From text to text: tokenizer, chat template, sampling, streams, the loop that generates, conversations."""
