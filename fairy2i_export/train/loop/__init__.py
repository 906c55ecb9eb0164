"""The steps of a run on transformers' Trainer: models, schedule, loss, checkpoints, progress."""
