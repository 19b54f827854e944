"""The command `nin export onnx` of this checkout.

python export/to_onnx.py --target-triton 24.10
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("export", "onnx")
