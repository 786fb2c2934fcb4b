"""The names of the backends that an export can hold (what runs them: `tmkd.inference.engines`)."""

from __future__ import annotations

from typing import Literal, get_args

BackendName = Literal["openvino-int8", "openvino-bf16", "onnx-int8", "onnx-fp32"]
KNOWN_BACKENDS: tuple[str, ...] = get_args(BackendName)
SAFE_BACKEND = "onnx-fp32"  # what a scorer falls back to: the arithmetic that the others are measured against
