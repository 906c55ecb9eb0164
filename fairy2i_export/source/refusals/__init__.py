"""What is no checkpoint to work on, told by name with what to do."""
