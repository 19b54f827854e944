"""`cmake --install`, and a project that has only heard of `find_package(nin)`."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nin.images import encode_png
from nin.paths import ROOT

CPP = ROOT / "cpp_client"


@pytest.fixture(scope="module")
def installed(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", cpp_build, "--prefix", prefix)
    return prefix


def run(*command: object) -> str:
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def torch_folder() -> Path:
    return Path(torch.__file__).parent


@pytest.fixture(params=["the torch wheel", "a LibTorch download"])
def options(request: pytest.FixtureRequest, installed: Path, tmp_path: Path) -> list[str]:
    """CMake's for the consumer. A download has the folders of the wheel that matter here."""
    prefixes = [installed]
    if request.param == "a LibTorch download":
        download = tmp_path / "libtorch"
        download.mkdir()
        for folder in ("include", "lib", "share"):
            (download / folder).symlink_to(torch_folder() / folder)
        prefixes.append(download)
    return ["-D", f"CMAKE_PREFIX_PATH={';'.join(map(str, prefixes))}"]


def test_another_project_uses_it(
    options: list[str], artifacts: Path, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    build = tmp_path / "build"
    run("cmake", "-S", CPP / "examples" / "embed", "-B", build, *options)
    run("cmake", "--build", build)
    picture = tmp_path / "boot.png"
    picture.write_bytes(encode_png(pixels[0]))
    out = run(build / "embed", artifacts / "fashion_mnist.pt", picture)
    assert re.fullmatch(rf"{picture}: Ankle boot \(0\.9\d+\)\n", out)
    libraries = run("ldd", build / "embed")
    home = tmp_path / "libtorch" if (tmp_path / "libtorch").exists() else torch_folder()
    assert f"libtorch_cpu.so => {home}/lib/libtorch_cpu.so" in libraries
    ended = subprocess.run([build / "embed", "none.pt", picture], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        ended.stderr == "error: no model file at none.pt; export one by `nin export torchscript`\n"
    )


def test_the_client_of_a_server_needs_no_libtorch(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(
        "#include <nin/triton_client.h>\n"
        'int main() { try { nin::TritonClient client({.url = "127.0.0.1:1"}); }'
        " catch (const nin::Error&) { return 7; } }\n"
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\n"
        "project(asks LANGUAGES CXX)\n"
        "find_package(nin 0.1 REQUIRED COMPONENTS triton)\n"
        "add_executable(asks main.cpp)\n"
        "target_link_libraries(asks PRIVATE nin::triton)\n"
    )
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, "-D", f"CMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", build)
    assert "LibTorch_CPU_LIBRARY" not in (build / "CMakeCache.txt").read_text()
    assert subprocess.run([build / "asks"]).returncode == 7
    assert "torch" not in run("ldd", build / "asks")


def test_another_version_of_libtorch_is_refused(installed: Path, tmp_path: Path) -> None:
    other = tmp_path / "libtorch"
    (other / "include/torch/csrc/api/include/torch").mkdir(parents=True)
    (other / "include/torch/headeronly").mkdir()
    for header in ("torch/script.h", "torch/csrc/api/include/torch/torch.h"):
        (other / "include" / header).touch()
    lines = (
        f"#define TORCH_VERSION_{p} {n}" for p, n in (("MAJOR", 2), ("MINOR", 3), ("PATCH", 1))
    )
    (other / "include/torch/headeronly/version.h").write_text("\n".join(lines))
    (other / "lib").symlink_to(torch_folder() / "lib")
    example = CPP / "examples" / "embed"
    command = ["cmake", "-S", str(example), "-B", str(tmp_path / "build")]
    command += ["-D", f"CMAKE_PREFIX_PATH={installed};{other}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode != 0
    said = " ".join(ended.stderr.split())
    assert f"it needs LibTorch {torch.__version__.partition('+')[0]}" in said
    assert f"found '2.3.1' in '{other}'" in said


def test_installs_headers_libraries_and_programs(installed: Path, cpp_build: Path) -> None:
    headers = {path.name for path in (installed / "include" / "nin").iterdir()}
    assert headers == {path.name for path in (CPP / "include" / "nin").iterdir()}
    for header in (CPP / "include" / "nin").iterdir():  # no header of LibTorch, nor of a library
        included = re.findall(r"#include [<\"](.*?)[>\"]", header.read_text())
        assert all("/" not in name or name.startswith("nin/") for name in included)
    assert {path.name for path in (installed / "bin").iterdir()} == {"nin_classify", "nin_triton"}
    assert "Exit codes" in run(installed / "bin" / "nin_classify", "--help")  # it finds LibTorch
    assert "torch" not in run("ldd", installed / "bin" / "nin_triton")


def test_has_the_version_of_the_python_package(installed: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (config,) = installed.glob("lib*/**/ninConfigVersion.cmake")
    assert f'set(PACKAGE_VERSION "{version}")' in config.read_text()


def test_presets_are_whole() -> None:
    presets = json.loads((CPP / "CMakePresets.json").read_text())
    names = {preset["name"] for preset in presets["configurePresets"]}
    assert {"release", "debug", "asan"} <= names
