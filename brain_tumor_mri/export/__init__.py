"""A model as ONNX, LiteRT or TensorRT, checked against PyTorch."""
