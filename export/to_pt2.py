"""Exports a model to .pt2: another name of `nin export pt2`.

python export/to_pt2.py --help
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("export", "pt2")
