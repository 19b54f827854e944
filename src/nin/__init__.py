"""From a trained PyTorch classifier to C++ and Triton, proven equal."""

import os
import sys

# onnxruntime reads this once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# openvino reports its import to Google Analytics, unless this package of its can't be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
