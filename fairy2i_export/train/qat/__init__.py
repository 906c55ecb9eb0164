"""Linear layers that quantize while they train: the same codes as the exporter's, with a straight-through gradient."""
