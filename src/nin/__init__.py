"""From a trained PyTorch classifier to C++ and Triton, proven equal."""

import os

# onnxruntime reads this once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
