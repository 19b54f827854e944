"""The command `nin serve` of this checkout: serves a model repository until Ctrl-C.

python scripts/serve.py --http-port 0
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("serve")
