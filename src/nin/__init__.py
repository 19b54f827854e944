"""From a trained Network in Network to ONNX, TorchScript, C++ and Triton."""

import os

# onnxruntime reads this once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
