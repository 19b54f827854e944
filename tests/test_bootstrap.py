"""The environment belongs to its checkout, with a stand-in for Python: nothing is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nin.paths import ROOT

FAKE_PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then  # -m venv --clear .venv
  rm -rf "$4"/*
  mkdir -p "$4/bin"
  cp "$0" "$4/bin/python"
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a path with a space, its environment made."""
    folder = tmp_path / "the checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("Makefile", "scripts/bootstrap.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    assert make(folder)
    return folder


def make(checkout: Path) -> bool:
    """Whether make has made the environment, or found that it is there."""
    ended = subprocess.run(
        ["make", ".venv/complete", f"PYTHON={checkout.parent / 'python'}"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    return "Environment ready" in ended.stdout


def test_an_environment_is_made_once(checkout: Path) -> None:
    assert not make(checkout)
    (checkout / "pyproject.toml").touch()
    assert make(checkout)


def test_a_moved_checkout_makes_its_environment_anew(checkout: Path) -> None:
    moved = checkout.rename(checkout.with_name("moved"))
    assert make(moved)
    assert not make(moved)


def test_a_copied_checkout_makes_its_environment_anew(checkout: Path) -> None:
    copied = shutil.copytree(checkout, checkout.with_name("copied"), symlinks=True)
    assert make(copied)
    assert not make(copied)
    assert not make(checkout)


def test_a_link_to_anothers_environment_is_replaced_and_the_other_left_alone(
    checkout: Path,
) -> None:
    copied = checkout.with_name("copied")
    shutil.copytree(checkout, copied, ignore=shutil.ignore_patterns(".venv"))
    (copied / ".venv").symlink_to(checkout / ".venv")
    assert make(copied)
    assert not make(copied)
    assert not make(checkout)


def test_a_script_does_not_run_another_checkouts_code(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "src" / "nin").mkdir(parents=True)
    command = [sys.executable, "scripts/classify.py", "shirt.png"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"this script is of {tmp_path}, but its Python runs the code in {ROOT}" in ended.stderr
    assert ended.stderr.count("\n") == 1
