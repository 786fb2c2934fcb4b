"""Export: fold the heads, write ONNX and int8, check every backend against the student."""
