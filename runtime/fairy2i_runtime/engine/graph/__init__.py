"""Look at the graph of a model before onnxruntime does: only what fairy2i-export writes goes on."""
