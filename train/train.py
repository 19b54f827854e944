"""The command `nin train` of this checkout: trains the built-in model's network.

python train/train.py --limit 2000 --epochs 4 --output runs/try
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("train")
