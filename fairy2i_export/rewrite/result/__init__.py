"""What comes out of a rewrite: written, tried in onnxruntime, and described."""
