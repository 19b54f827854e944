"""From a trained PyTorch classifier to C++ and Triton, proven equal.

nin COMMAND --help explains a command and its options.
"""

import importlib
import sys
from importlib.metadata import version
from types import ModuleType
from typing import NamedTuple, NoReturn

from nin.errors import InputError, first_line
from nin.terminal import parser, run


class Command(NamedTuple):
    """A module of this package, which is imported when it is asked for."""

    extra: str  # of the package, without which it can't run
    summary: str


COMMANDS = {
    "init": Command("export", "write a model folder for a network of yours"),
    "export": Command("export", "write the ONNX or TorchScript files of a model"),
    "verify": Command("export", "hold the exports against the network in every runtime"),
    "publish": Command("serve", "make the exports the next version in a Triton repository"),
    "serve": Command("serve", "serve a repository with the embedded Triton"),
    "classify": Command("", "classify images by a Triton server"),
    "bench": Command("train", "measure every way to run the exports"),
    "train": Command("train", "train the built-in model's network"),
    "evaluate": Command("train", "evaluate a model on its samples, class by class"),
}


def main() -> NoReturn:
    """The console program: `nin COMMAND OPTION ...`."""
    run(lambda: _dispatch(sys.argv[1:]))


def run_command(name: str, *arguments: str) -> NoReturn:
    """Runs a command as a script does that is another name for it.

    Args:
        arguments: they come before those of the script.
    """
    run(lambda: _call(name, [*arguments, *sys.argv[1:]]))


def _dispatch(arguments: list[str]) -> None:
    if arguments and arguments[0] in COMMANDS:
        return _call(arguments[0], arguments[1:])
    options = parser(f"{__doc__}\n{_list()}", prog="nin")
    options.add_argument("--version", action="version", version=f"nin {version('nin')}")
    options.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of these")
    options.parse_args(arguments[:1] or ["--help"])
    return None


def _list() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(f"  {n.ljust(width)}  {c.summary}" for n, c in COMMANDS.items())


def _call(name: str, arguments: list[str]) -> None:
    command = _import(name)
    options = parser(command.__doc__, prog=f"nin {name}")
    command.add_options(options)
    command.execute(options.parse_args(arguments))


def _import(name: str) -> ModuleType:
    """Raises InputError where a package is missing or broken that the command needs."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        extra = COMMANDS[name].extra
        if not extra or (error.name or "").split(".")[0] == "nin":
            raise
        raise InputError(
            f"`nin {name}` needs the extra {extra}, of which {error.name} isn't installed: "
            f"pip install 'nin[{extra}]'"
        ) from error
    except ImportError as error:
        raise InputError(f"`nin {name}` can't be loaded: {first_line(error)}") from error
