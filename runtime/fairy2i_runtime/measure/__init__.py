"""What is measured and told about a model, as data: speed, perplexity, memory, contents; and how progress is shown."""
