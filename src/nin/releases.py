"""What the releases of the official Triton container carry, and so what they load.

The onnxruntime of each release is the one in Triton's own compatibility table, its torch the one
of the PyTorch container of the same name. The limits were measured by running small models of
every opset and IR version in the wheels of those onnxruntimes: docs/triton-releases.md.
"""

from dataclasses import dataclass

from nin.errors import InputError


@dataclass(frozen=True)
class TritonRelease:
    onnxruntime: str
    torch: str
    opset: int  # the newest that this onnxruntime loads
    ir_version: int  # likewise


UNKNOWN = "unknown"  # what a release carries, where nothing says it

TRITON_RELEASES = {
    "24.04": TritonRelease("1.17.3", "2.3", 20, 9),
    "24.05": TritonRelease("1.18.0", "2.4", 21, 10),
    "24.06": TritonRelease("1.18.0", "2.4", 21, 10),
    "24.07": TritonRelease("1.18.1", "2.4", 21, 10),
    "24.08": TritonRelease("1.18.1", "2.5", 21, 10),
    "24.09": TritonRelease("1.19.2", "2.5", 21, 10),
    "24.10": TritonRelease("1.19.2", "2.5", 21, 10),
    "24.11": TritonRelease("1.19.2", "2.6", 21, 10),
    "24.12": TritonRelease("1.20.1", "2.6", 21, 10),
    "25.01": TritonRelease("1.20.1", "2.6", 21, 10),
    "25.02": TritonRelease("1.20.1", "2.7", 21, 10),
    "25.03": TritonRelease("1.21.0", "2.7", 22, 10),
    "25.04": TritonRelease("1.21.0", "2.7", 22, 10),
    "25.05": TritonRelease("1.22.0", "2.8", 22, 10),
    "25.06": TritonRelease("1.22.0", "2.8", 22, 10),
    "25.07": TritonRelease("1.22.0", UNKNOWN, 22, 10),
    # an unreleased 1.23 that couldn't be measured: what 1.22 loads, it surely does
    "25.08": TritonRelease("1.23.0 preview", "2.8", 22, 10),
    "25.09": TritonRelease("1.23.0", "2.9", 23, 11),
    "25.10": TritonRelease("1.23.1", "2.9", 23, 11),
    "25.11": TritonRelease("1.23.2", "2.10", 23, 11),
    "25.12": TritonRelease("1.23.2", "2.10", 23, 11),
    "26.01": TritonRelease("1.23.2", "2.10", 23, 11),
    "26.02": TritonRelease("1.24.1", "2.11", 25, 13),
    "26.03": TritonRelease("1.24.2", "2.11", 25, 13),
    "26.04": TritonRelease("1.24.4", "2.12", 25, 13),
    "26.05": TritonRelease("1.24.4", "2.12", 25, 13),
    "26.06": TritonRelease("1.24.4", "2.13", 25, 13),
    "26.07": TritonRelease("1.27.0", "2.13", 26, 13),
    "26.08": TritonRelease("1.28.0", "2.14", 26, 13),
    "26.09": TritonRelease("1.30.0", "2.14", 26, 13),
}

# What deploy/ builds on: the newest, because each closes holes of those before (docs/deploy.md).
# The embedded server of development and tests is older: nin.serve.server.RELEASE.
DEPLOYED = "26.09"


def triton_release(name: str) -> TritonRelease:
    """Raises InputError for a release that isn't in the table."""
    if name not in TRITON_RELEASES:
        known = ", ".join(TRITON_RELEASES)
        raise InputError(f"unknown Triton release {name}; known are {known}")
    return TRITON_RELEASES[name]
