"""The command `nin evaluate` of this checkout: evaluates a model class by class.

python train/evaluate.py --weights runs/best/nin.safetensors
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("evaluate")
