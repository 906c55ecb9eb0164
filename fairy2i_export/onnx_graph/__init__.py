"""Building the ONNX graph: the operator's function body, linear layers, rotary embedding, the decoder."""
