"""The GoogleTest suite: CTest runs it once, and each of its tests is one here."""

import fcntl
import json
import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nin.paths import CPP_TOOLS

BUILD = CPP_TOOLS.parent


def names() -> list[str]:
    """What CTest would run; empty where nothing is built, which `test_all_were_run` fails."""
    if not (BUILD / "CTestTestfile.cmake").is_file():
        return []
    with (BUILD / "show-only.lock").open("w") as lock:
        # after a build it first writes down what the programs list, which workers do at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = subprocess.run(
            ["ctest", "--show-only=json-v1"], cwd=BUILD, capture_output=True, check=True
        )
    return [test["name"] for test in json.loads(shown.stdout)["tests"]]


@pytest.fixture(scope="module")
def results(
    cpp_build: Path,
    artifacts: Path,
    pt2_packages: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, ET.Element]:
    report = tmp_path_factory.mktemp("ctest") / "report.xml"
    subprocess.run(
        ["ctest", "--output-junit", report, "--test-output-size-passed", "0"],
        cwd=cpp_build,
        env={
            **os.environ,
            "NIN_ARTIFACTS": str(artifacts),
            "NIN_PACKAGES": str(pt2_packages),
        },
        capture_output=True,
    )
    return {case.get("name", ""): case for case in ET.parse(report).iter("testcase")}  # noqa: S314


@pytest.mark.parametrize("name", names())
def test_unit(name: str, results: dict[str, ET.Element]) -> None:
    status = results[name].get("status")
    output = results[name].findtext("system-out", "")
    if status in ("notrun", "disabled"):
        pytest.skip(output.strip() or "skipped by GoogleTest")
    assert status == "run", output


def test_all_were_run(results: dict[str, ET.Element]) -> None:
    assert len(results) == len(names()) > 40
