"""Exports a model to ONNX: another name of `nin export onnx`.

python export/to_onnx.py --help
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("export", "onnx")
