"""What computes a network: torch eagerly or compiled, OpenVINO, ONNX Runtime. Only the one in use is imported."""
