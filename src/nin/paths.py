"""Where things lie in the checkout; every script takes them as its defaults."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "nin.safetensors"
DATA = ROOT / "data"
ARTIFACTS = ROOT / "artifacts"
MODEL_REPOSITORY = ROOT / "model_repository"
TRITON = ROOT / ".triton"  # the embedded server, unpacked by scripts/bootstrap.sh
CPP_TOOLS = ROOT / "cpp_client" / "build" / "release" / "tools"  # made by scripts/build_cpp.sh
