"""The package as somebody installs it: a light client, and extras for the rest."""

import ast
import os
import subprocess
import sys
import venv
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from nin.paths import DATA, ROOT
from nin.serve.server import Server

IDX = DATA / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"

# What the client shan't import; Pillow decodes in the server.
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "matplotlib", "PIL", "gevent", "grpc"}

IMPORT = """
import sys, time
start = time.process_time()
import nin.client
print(time.process_time() - start, *{name.partition(".")[0] for name in sys.modules})
"""


def test_the_client_is_imported_quickly_and_without_anything_heavy() -> None:
    seconds = []
    for _ in range(3):
        out = subprocess.check_output([sys.executable, "-c", IMPORT], text=True)
        time, *modules = out.split()
        assert not HEAVY & set(modules)
        seconds.append(float(time))
    assert min(seconds) < 0.5


def test_parts_of_the_package_import_in_one_direction_only() -> None:
    package = ROOT / "src" / "nin"
    imports: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        part = path.relative_to(package).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nin"):
                names = [f"nin.{a.name}" for a in node.names] if node.module == "nin" else []
                for module in names or [str(node.module)]:
                    imports.setdefault(part, set()).add(module.split(".")[1])
    for part, others in imports.items():
        others.discard(part)
    assert len(imports) > 10
    TopologicalSorter(imports).prepare()  # raises CycleError


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv")
    programs = folder / "venv" / "bin"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("nin-*.whl")
    install = ("install", "--no-compile", "--constraint", ROOT / "constraints.txt", wheel)
    subprocess.run([*pip, "--python", programs / "python", *install], check=True)
    return programs


def run(program: Path, *options: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [str(program), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_wheel_classifies(
    installed: Path, server: Server, tmp_path: Path, protocol: str
) -> None:
    options = ("--limit", 2, "--protocol", protocol, "--url", getattr(server, protocol))
    ended = run(installed / "nin", "classify", IDX, *options, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [row.split("|")[2].strip() for row in ended.stdout.splitlines()[2:]] == [
        "Ankle boot",
        "Pullover",
    ]


def test_the_wheel_is_typed_and_light(installed: Path, tmp_path: Path) -> None:
    program = "import importlib.util as u, pathlib, nin; print(*map(u.find_spec, ['torch', 'PIL']))"
    program += "; print(pathlib.Path(nin.__file__).with_name('py.typed').is_file())"
    ended = run(installed / "python", "-c", program, cwd=tmp_path)
    assert ended.stdout.split() == ["None", "None", "True"]


@pytest.mark.parametrize("command", ["init", "export", "verify", "publish", "serve"])
def test_what_is_missing_is_told_in_one_line(installed: Path, tmp_path: Path, command: str) -> None:
    ended = run(installed / "nin", command, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: `nin {command}` needs the extra ")
    assert ended.stderr.count("\n") == 1


def test_every_command_is_listed(installed: Path, tmp_path: Path) -> None:
    ended = run(installed / "nin", cwd=tmp_path)
    assert ended.returncode == 0
    for command in ("init", "export", "verify", "publish", "serve", "classify"):
        assert f"\n  {command} " in ended.stdout
