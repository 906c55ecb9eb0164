"""The last step of a calibration: multipliers and norms of the whole model, tuned towards the float model's predictions."""
