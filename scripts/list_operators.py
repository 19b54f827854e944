"""Writes src/nin/export/operators.json from the wheels of torch, the oldest first.

python scripts/list_operators.py torch-2.3.1-*.whl torch-2.4.1-*.whl ... torch-2.14.1-*.whl

`pip download --no-deps torch==2.3.1` fetches one.
"""

import json
import re
import zipfile
from pathlib import Path

from nin.errors import InputError
from nin.files import write_atomically
from nin.paths import ROOT
from nin.terminal import parser, run

# Declared late, but TorchScript's own since its first version.
_OF_TORCHSCRIPT = {"dim", "numel"}

_DECLARATIONS = "torchgen/packaged/ATen/native/native_functions.yaml"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL", help="of torch")
    wheels = options.parse_args().wheels
    oldest, *younger = sorted(wheels, key=lambda wheel: tuple(map(int, minor(wheel).split("."))))
    known = operators(oldest)
    first: dict[str, str] = {}
    for wheel in younger:
        present = operators(wheel)
        first |= dict.fromkeys(present - known - _OF_TORCHSCRIPT, minor(wheel))
        known |= present
    text = json.dumps(dict(sorted(first.items())), indent=0)
    write_atomically(ROOT / "src" / "nin" / "export" / "operators.json", f"{text}\n".encode())


def minor(wheel: Path) -> str:
    """2.3 for torch-2.3.1-...whl."""
    version = re.match(r"torch-(\d+\.\d+)\.", wheel.name)
    if version is None:
        raise InputError(f"{wheel} isn't a wheel of torch; its name begins as torch-2.3.1-")
    return version[1]


def operators(wheel: Path) -> set[str]:
    """The names of all operators with their overloads, as `add.Tensor`."""
    with zipfile.ZipFile(wheel) as archive:
        return set(re.findall(r"^- func: ([\w.]+)\(", archive.read(_DECLARATIONS).decode(), re.M))


if __name__ == "__main__":
    run(main)
