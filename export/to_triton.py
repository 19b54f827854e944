"""The command `nin publish` of this checkout: exports become a version in a model repository.

python export/to_triton.py --load 127.0.0.1:8000
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("publish")
