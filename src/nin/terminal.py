"""What the commands share on the terminal: how they end, tables, options."""

import argparse
import errno
import io
import os
import platform
import re
import signal
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn, TextIO

from nin.errors import CheckError, InputError, explain
from nin.text import escape

# What writing fails with; Python doesn't say of which file.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

_NUMBER = re.compile(r"[+-]?[\d.,]*\d(e[+-]\d+)?%?(?!\S)")  # alone, or with what follows a space


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script and turns its end into an exit code and, where it failed, the reason.

    0 fine, 1 a check failed, 2 a person's mistake, 128 + N ended by signal N.
    """
    # SIGTERM unwinds the stack like Ctrl-C does, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if sys.stderr is None:  # closed by the shell; what a script says there would go to stdout
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the script runs
        os.dup2(sys.stderr.fileno(), 2)
        os.set_inheritable(2, True)  # for the child processes
    if sys.stdout is None:
        print("error: stdout is closed; send it to a file, or to /dev/null", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files hold what a terminal can't show
            stream.reconfigure(errors="backslashreplace")
    code, reason = _end(main)
    try:
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        if code != 1:  # a check that failed says so in any case
            code, reason = _lost(error)
    if reason:
        _complain(reason)
    sys.exit(code)


def _complain(reason: str) -> None:
    """Says on stderr why a script failed; where that can't be written its code still says it."""
    try:
        print("\n".join(map(escape, reason.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Drops what a stream holds and gets: Python would write it once more when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _end(main: Callable[[], None]) -> tuple[int, str]:
    """Runs a script; its exit code, and the reason where it failed."""
    try:
        _require_own_package()
        main()
    except SystemExit as end:  # argparse, and SIGTERM
        return int(end.code or 0), ""
    except CheckError as error:
        return 1, f"error: {error}"
    except InputError as error:
        return 2, f"error: {error}"
    except BrokenPipeError as error:
        return _lost(error)
    except OSError as error:  # a full disk, a file that vanished
        nameless = error.errno in _OF_WRITING and error.filename is None
        where = "can't write to stdout or a temporary file: " if nameless else ""
        return 2, f"error: {where}{explain(error)}"
    except MemoryError:
        return 2, "error: out of memory; free some, or raise the limit of this shell (`ulimit -v`)"
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "interrupted"
    return 0, ""


def _require_own_package() -> None:
    """Raises InputError where the script of a copied checkout would run the original's package."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or __file__).resolve()
    checkout, package = script.parent.parent, Path(__file__).resolve().parent
    if (own := checkout / "src" / "nin").is_dir() and own != package:
        raise InputError(
            f"this script is of {checkout}, but its Python runs the code in {package}; "
            "make an environment of its own: `make .venv/complete`"
        )


def _lost(error: OSError) -> tuple[int, str]:
    """How a script ends whose output can't be written."""
    if isinstance(error, BrokenPipeError):  # its reader has had enough, as in `| head -1`
        return 128 + signal.SIGPIPE, ""
    return 2, f"error: can't write to stdout: {explain(error)}"


def parser(docstring: str | None, *, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, its example included, and the defaults."""
    return _Parser(prog=prog, description=docstring, formatter_class=_Formatter)


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse hides that a help can't be written, and shows arguments as they are
        if file is sys.stdout:
            print(message, end="")
        elif message:
            _complain(message.removesuffix("\n"))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" and a flag's "(default: False)" say nothing
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def image_count(text: str) -> int | None:
    """An option's value as a number of images, None for all of them."""
    if text == "all":
        return None
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor `all`") from error


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
    """This machine's, as the benchmark names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the smallest and largest where there are several."""
    low, high = (format(value, form) for value in (min(values), max(values)))
    return f"{median(values):{form}}" + (f" ({low} to {high})" if len(values) > 1 else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well on a terminal and is Markdown too; numbers stand to the right."""
    rows = [[escape(cell).replace("|", r"\|") for cell in row] for row in rows]
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(_width, column)) for column in columns]
    right = [_are_numbers(column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, flush in zip(cells, widths, right, strict=True):
            space = " " * (width - _width(cell))
            padded.append(f"{space}{cell}" if flush else f"{cell}{space}")
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether each begins with a number, but for those that are left out."""
    numbers = [cell for cell in cells if cell != "-"]
    return bool(numbers) and all(map(_NUMBER.match, numbers))


def _width(text: str) -> int:
    """How many columns of a terminal a text takes: a Chinese character two, an accent none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
