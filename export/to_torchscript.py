"""The command `nin export torchscript` of this checkout.

python export/to_torchscript.py --target-triton 24.10
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("export", "torchscript")
