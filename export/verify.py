"""The parity gate: another name of `nin verify`.

python export/verify.py --help
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("verify")
