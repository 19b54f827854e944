"""The console program `nin`: its commands, and what it says where it can't run one."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from nin.commands import COMMANDS
from tests.conftest import Script

# Runs the program as if by a shell: what is imported here already isn't there.
PROGRAM = "import sys; {}; sys.argv = ['nin', *sys.argv[1:]]; from nin.commands import main; main()"


def run(before: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(before), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("options", [(), ("--help",)])
def test_commands_are_listed(nin: Script, options: tuple[str, ...]) -> None:
    ended = nin(*options)
    assert ended.code == 0
    for name, command in COMMANDS.items():
        assert f"  {name.ljust(8)}  {command.summary}\n" in ended.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_begins_with_commands_to_type(nin: Script, name: str) -> None:
    ended = nin(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"usage: nin {name} ")
    assert f"\nnin {name} " in ended.out
    assert "default: None" not in ended.out
    assert "default: False" not in ended.out
    assert str(importlib.import_module(f"nin.commands.{name}").__doc__) in ended.out


def test_mistakes(nin: Script) -> None:
    assert "invalid choice: 'classfy'" in nin("classfy", "shirt.png").err
    assert nin("--version").out == "nin 0.1.0\n"


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.extra])
def test_a_missing_extra_is_named(tmp_path: Path, name: str) -> None:
    without = "sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxruntime', 'PIL')))"
    ended = run(without, name, cwd=tmp_path)
    assert ended.returncode == 2
    extra = COMMANDS[name].extra
    assert ended.stderr.startswith(f"error: `nin {name}` needs the extra {extra}, of which ")
    assert ended.stderr.endswith(f" isn't installed: pip install 'nin[{extra}]'\n")


def test_classifying_needs_no_extra(tmp_path: Path) -> None:
    without = "sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxruntime', 'PIL')))"
    assert run(without, "classify", "--help", cwd=tmp_path).returncode == 0
    ended = run(without, "classify", "none.png", cwd=tmp_path)
    assert ended.stderr == "error: no image file at none.png\n"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("ImportError('libtorch.so: no\\nmore')", "`nin export` can't be loaded: libtorch.so: no"),
        ("MemoryError", "out of memory; free some, or raise the limit of this shell (`ulimit -v`)"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, broken: str, message: str
) -> None:
    (tmp_path / "torch.py").write_text(f"raise {broken}")
    ended = run("sys.path.insert(0, '.')", "export", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {message}\n"
