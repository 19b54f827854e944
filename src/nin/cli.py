"""What the scripts share on the terminal: how they end, tables, options."""

import argparse
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from nin.errors import CheckError, InputError
from nin.paths import WEIGHTS


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script and turns its end into an exit code and, where it failed, the reason.

    0 fine, 1 a check failed, 2 a person's mistake, 128 + N ended by signal N.
    """
    # SIGTERM unwinds the stack like Ctrl-C does, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except CheckError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (InputError, OSError) as error:  # OSError: a full disk, a file that vanished
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, its example included, and all defaults."""

    class Formatter(
        argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
    ): ...

    return argparse.ArgumentParser(description=docstring, formatter_class=Formatter)


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that reads weights and images."""
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the trained network")
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder with Fashion-MNIST's IDX files, if not one of the usual places",
    )


def image_count(text: str) -> int | None:
    """An option's value as a number of test images, None for all of them."""
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text} is not 1 to 10000, nor `all`")
    return int(text)


def natural(text: str, least: int = 0) -> int:
    """An option's value as a whole number from `least` on."""
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} on")
    return int(text)


def positive(text: str) -> int:
    return natural(text, least=1)


def short(path: Path) -> str:
    """A path as a person would type it: relative where it lies below the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def processor() -> str:
    """This machine's, as the benchmarks name it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well on a terminal and is Markdown too; numbers stand to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [any(c.isdigit() for c in "".join(column[1:2])[:2]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])
