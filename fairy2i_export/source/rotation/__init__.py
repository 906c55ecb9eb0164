"""A checkpoint whose residual stream and heads are rotated, the rotations absorbed into its weights (QuaRot, arXiv 2404.00456).

Outliers of activations are spread over all channels, and what rounding changes matters less; the model computes the same as
before, and nothing is added to its graph.
"""
