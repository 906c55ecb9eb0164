"""ONNX: nodes and tensors without contents. The operator and its definition, formats of linear layers, the decoder's graph."""
