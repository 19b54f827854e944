"""Where things lie in the checkout, or else below the current folder: the commands' defaults."""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
ROOT = _CHECKOUT if (_CHECKOUT / "models" / "nin").is_dir() else Path.cwd()
NIN = ROOT / "models" / "nin"  # the built-in model's folder
DATA = ROOT / "data"
ARTIFACTS = ROOT / "artifacts"
MODEL_REPOSITORY = ROOT / "model_repository"
TRITON = ROOT / ".triton"  # the embedded server, unpacked by scripts/bootstrap.sh
CPP_TOOLS = ROOT / "cpp_client" / "build" / "release" / "tools"  # made by scripts/build_cpp.sh
