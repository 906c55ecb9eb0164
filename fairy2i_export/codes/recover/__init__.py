"""Codes and scales of matrices that are dequantized already: sums of stages, with or without a factor per row."""
