"""The operator library: where it is, how onnxruntime gets it, and its functions called directly."""
