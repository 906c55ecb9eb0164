"""What a model holds before it is rewritten: its file, constant values, ranks."""
