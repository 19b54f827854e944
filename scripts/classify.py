"""The command `nin classify` of this checkout: classifies images by a Triton server.

python scripts/classify.py shirt.png bag.jpg
"""

from nin.commands import run_command

if __name__ == "__main__":
    run_command("classify")
