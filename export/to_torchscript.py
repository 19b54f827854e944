"""Exports a model to TorchScript: another name of `nin export torchscript`.

python export/to_torchscript.py --help
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("export", "torchscript")
