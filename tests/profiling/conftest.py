"""Files of tiny models."""
from tiny import tiny_onnx  # noqa: F401
