"""Served models with one thing changed in their configuration."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nin.client import Client
from nin.errors import ServerError
from nin.serve.server import Server

Change = Callable[[str], str]


def variant(repository: Path, name: str, *changes: Change, file: bytes | None = None) -> str:
    """Adds a copy of a model with a changed config, and perhaps another file; returns its name."""
    folder = repository / f"variant_{len(list(repository.glob('variant_*')))}"
    shutil.copytree(repository / name, folder)
    text = (folder / "config.pbtxt").read_text()
    text = text[: text.index("# The first request")]  # no warm-up: it would find the fault first
    for change in changes:
        changed = change(text)
        assert changed != text
        text = changed
    (folder / "config.pbtxt").write_text(text.replace(f'name: "{name}"', f'name: "{folder.name}"'))
    if file is not None:
        next(folder.glob("1/model.*")).write_bytes(file)
    return folder.name


def swapped(old: str, new: str, count: int = 1) -> Change:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, count)

    return change


def added(text: str) -> Change:
    return lambda config: f"{config}\n{text}\n"


def parameter(name: str, value: str) -> Change:
    """In the place of the one of that name, if there is one."""
    entry = added(f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}')
    return lambda text: entry(re.sub(rf'parameters {{ key: "{name}".*\n', "", text))


def refused(server: Server, name: str, message: str) -> None:
    with Client(server.http) as client, pytest.raises(ServerError, match=re.escape(message)):
        client.load(name)
