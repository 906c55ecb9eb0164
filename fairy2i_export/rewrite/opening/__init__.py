"""From an ONNX file to a model that the passes can work on: checked, and with nothing in it that onnx_ir would lose."""
