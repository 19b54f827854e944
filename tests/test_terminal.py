"""How scripts end, whatever the terminal, the disk and the shell do to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nin.terminal import table

PROGRAM = """
import subprocess
import sys
from pathlib import Path
from nin.files import write_atomically
from nin.terminal import parser, run, table
from nin.errors import CheckError

def show():
    print(table(["image"], [[name] for name in sys.argv[2:]]))

def fail():
    show()
    raise CheckError("the gate is closed")

def write():
    write_atomically(Path("big"), bytes(20_000))

def start():  # a child process that says something
    raise SystemExit(subprocess.run(["bash", "-c", "echo a >&2 && test -e /dev/fd/2"]).returncode)

def ask():
    options = parser("A long page. " * 1000)
    options.add_argument("image")
    options.parse_args(sys.argv[2:])
    raise CheckError(sys.argv[2])

run(globals()[sys.argv[1]])
"""

buffered_or_not = pytest.mark.parametrize("unbuffered", ["", "1"])


def run_shell(
    tmp_path: Path, command: str, unbuffered: str, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a shell command in which $RUN is the program above."""
    (tmp_path / "program.py").write_text(PROGRAM)
    variables |= {"RUN": f"{sys.executable} program.py", "PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, env=os.environ | variables
    )


@buffered_or_not
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "gbk", "latin-1"])
def test_a_name_that_cannot_be_printed_is_escaped(
    tmp_path: Path, unbuffered: str, encoding: str
) -> None:
    command = r"$RUN show $'latin\xe9.png' 图片.png 한국.png $'two\nlines' $'\e[31mred'"
    ended = run_shell(tmp_path, command, unbuffered, PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, b"")
    out = ended.stdout.decode(encoding)
    assert len(out.splitlines()) == 7
    for text in (r"latin\udce9.png", r"two\nlines", r"\x1b[31mred"):
        assert text in out
    known = encoding in ("utf-8", "gbk")
    assert ("图片.png" if known else r"\u56fe\u7247.png") in out
    assert ("한국.png" if encoding == "utf-8" else r"\ud55c\uad6d.png") in out


@buffered_or_not
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("$RUN show a >&-", 2, "error: stdout is closed; send it to a file, or to /dev/null\n"),
        ("$RUN show a > /dev/full", 2, "error: can't write to stdout"),
        ("$RUN fail a > /dev/full", 1, "error: the gate is closed\n"),
        ("$RUN show a >&- 2>&-", 2, ""),
        ("$RUN fail a 2>&-", 1, ""),
        ("$RUN fail a 2>/dev/full", 1, ""),
        ("$RUN ask 2>/dev/full", 2, ""),
        ("$RUN start 2>&-", 0, ""),
        ("$RUN start 0<&- 2>&-", 0, ""),
        ("$RUN ask --help >/dev/full", 2, "error: can't write to stdout"),
        ("$RUN show a 1<program.py", 2, "error: can't write to stdout"),
        (r"$RUN ask $'\e[31mred\r'", 1, r"error: \x1b[31mred\r"),
        ("{ sleep 1; $RUN show {1..50000}; exit $?; } | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("{ $RUN show {1..50000}; exit $?; } | head -1; exit ${PIPESTATUS[0]}", 141, ""),
        ("ulimit -f 1; $RUN write", 2, "error: can't write big: File too large; raise the limit"),
    ],
)
def test_what_is_lost_is_told_in_one_line(
    tmp_path: Path, unbuffered: str, command: str, code: int, message: str
) -> None:
    ended = run_shell(tmp_path, command, unbuffered)
    err = ended.stderr.decode()
    if unbuffered and "fail a >" in command:  # the first print fails already
        code, message = 2, "error: can't write to stdout"
    assert ended.returncode == code
    assert err.startswith(message)
    assert err.count("\n") == (1 if message else 0)


def test_columns_of_a_table_are_aligned() -> None:
    shown = table(
        ["label", "probability"], [["毛衣", "0.5"], ["Ärmel", "0.25"], ["e\u0301te", "1"]]
    )
    assert shown.splitlines() == [
        "| label | probability |",
        "|-------|------------:|",
        "| 毛衣  |         0.5 |",
        "| Ärmel |        0.25 |",
        "| e\u0301te   |           1 |",
    ]


def test_a_bar_in_a_cell_is_no_border() -> None:
    assert table(["label"], [["a|b"]]).splitlines()[2] == r"| a\|b  |"


def test_an_argument_that_is_refused_is_escaped(tmp_path: Path) -> None:
    ended = run_shell(tmp_path, r"$RUN ask a $'\e[31mred'", "")
    assert ended.returncode == 2
    assert ended.stderr.endswith(b"unrecognized arguments: \\x1b[31mred\n")


def test_numbers_stand_to_the_right_and_what_only_begins_like_one_does_not() -> None:
    rows = [
        ["1.2 (1.1 to 1.3)", "24.10: torch 2.5", "-", "2x1", "-"],
        ["1e-05", "a", "9.5%", "b", "-"],
    ]
    shown = table(list("abcde"), rows).splitlines()[1]
    assert [rule[-1] for rule in shown.strip("|").split("|")] == [":", "-", ":", "-", "-"]


def test_characters_that_languages_join_words_with_are_shown() -> None:
    assert table(["label"], [["نیم\u200cبوت"], ["a\x07"]]).splitlines()[2:] == [
        "| نیم\u200cبوت |",
        "| a\\x07  |",
    ]
