"""From a stored delta to proven files: merged weights, ONNX, TensorRT, Triton, the Hub."""
