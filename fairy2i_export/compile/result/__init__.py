"""The last steps of an export: what is measured by running the model, and what is told about it."""
