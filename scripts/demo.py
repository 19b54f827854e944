"""The main job in one go: export the shipped weights, prove the exports, serve and use them.

python scripts/demo.py    # or `make demo`, which makes the environment first
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from nin.artifact import atomic_path, write_atomically
from nin.cli import image_count, parser, run, short
from nin.contract import FASHION_MNIST, LABELS
from nin.data import load
from nin.errors import CheckError, InputError
from nin.images import encode_png
from nin.paths import ARTIFACTS, CPP_TOOLS, DATA, ROOT, WEIGHTS
from nin.runtimes import open_runtime
from nin.runtimes.cpp import cpp_tools_are_built
from nin.triton.server import PORTS, RELEASE, find_tritonserver, serve

PICTURE = "demo.png"


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--images", type=image_count, default=256, help="test images for the parity gate"
    )
    options.add_argument("--output", type=Path, default=ARTIFACTS, help="folder to write to")
    args = options.parse_args()
    output = args.output.resolve()
    os.chdir(ROOT)  # where the commands that it shows are typed
    start = time.perf_counter()
    with step("1/6 Export the trained network to ONNX"):
        script("export/to_onnx.py", "--output", short(output))
    with step("2/6 Export it to TorchScript"):
        script("export/to_torchscript.py", "--output", short(output))
    with step("3/6 The parity gate: does every runtime, and the server, answer like the network?"):
        script(
            "export/verify.py",
            *("--images", str(args.images or "all")),
            *("--artifacts", short(output)),
            *("--report", short(output / "parity")),
        )
    pixels, labels = load("test")
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in range(len(LABELS))]
    files = [output / "images" / f"test-{index}.png" for index in firsts]
    for index, file in zip(firsts, files, strict=True):
        write_atomically(file, encode_png(pixels[index]))
    pictures = list(map(short, files))
    with step("4/6 Serve them with Triton, and ask it over HTTP and gRPC, from Python and C++"):
        try:
            find_tritonserver()
        except InputError as error:
            print(f"left out: {error}")
        else:
            ask_server(output, pictures)
    with step("5/6 Classify in C++, without Python and without a server"):
        if cpp_tools_are_built():
            model = output / f"{FASHION_MNIST.name}.pt"
            tool("nin_classify", *pictures, "--model", short(model))
        else:
            print("left out: the C++ tools aren't built; see `make cpp`")
    with step("6/6 Draw the first test image of every class with its prediction"):
        runtime = open_runtime("onnxruntime", FASHION_MNIST, artifacts=output, weights=WEIGHTS)
        probabilities = runtime(pixels[firsts])["probabilities"]
        draw(pixels[firsts], labels[firsts], probabilities, output / PICTURE)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Look at {short(output / PICTURE)}")


@contextmanager
def step(title: str) -> Iterator[None]:
    print(f"\n==> {title}", flush=True)
    start = time.perf_counter()
    yield
    print(f"    {time.perf_counter() - start:.1f} s", flush=True)


def script(path: str, *options: str) -> None:
    """Runs one of the project's scripts as a person would, and ends the demo where it fails."""
    print(f"$ python {shlex.join([path, *options])}", flush=True)
    code = subprocess.run([sys.executable, ROOT / path, *options]).returncode
    if code:
        failure = InputError if code == 2 else CheckError
        raise failure(f"{path} ended with exit code {code}")


def tool(name: str, *options: str) -> None:
    """Runs one of the C++ programs as a person would."""
    path = CPP_TOOLS / name
    print(f"$ {shlex.join([short(path), *options])}", flush=True)
    if code := subprocess.run([path, *options]).returncode:
        raise CheckError(f"{name} ended with exit code {code}")


def ask_server(output: Path, pictures: list[str]) -> None:
    """Publishes the exports, serves them, and classifies PNG files and an IDX file."""
    repository = output / "model_repository"
    options = ("--artifacts", short(output), "--repository", short(repository), "--keep", "2")
    script("export/to_triton.py", *options)
    idx = short(DATA / "fashion-mnist" / "t10k-images-idx3-ubyte.gz")
    with serve(repository, ports=dict.fromkeys(PORTS, 0)) as server:
        print(f"Triton {RELEASE} is ready on {server.http} (HTTP) and {server.grpc} (gRPC)")
        script("scripts/classify.py", *pictures, "--url", server.http)
        grpc = ("--protocol", "grpc", "--url", server.grpc)
        script("scripts/classify.py", idx, "--limit", "3", "--top", "3", *grpc)
        if cpp_tools_are_built():
            tool("nin_triton", idx, "--limit", "3", "--top", "3", "--url", server.http)
    print("The server has stopped.")


def draw(
    pixels: NDArray[np.uint8], labels: NDArray[np.uint8], probabilities: NDArray[np.float32],
    path: Path,
) -> None:  # fmt: skip
    """Each image above the bars of its three most probable classes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        4, 5, figsize=(13, 7.5), height_ratios=[3, 1, 3, 1], layout="constrained"
    )
    figure.suptitle("Fashion-MNIST test images, classified by fashion_mnist.onnx in onnxruntime")
    for i, (image, label, p) in enumerate(zip(pixels, labels, probabilities, strict=True)):
        row, column = 2 * (i // 5), i % 5
        right = p.argmax() == label
        picture, bars = axes[row, column], axes[row + 1, column]
        picture.imshow(image, cmap="gray_r")
        picture.set_title(
            f"{LABELS[p.argmax()]} {p.max():.1%}" + ("" if right else f"\nis {LABELS[label]}"),
            color="black" if right else "crimson",
        )
        picture.axis("off")
        top = p.argsort()[-3:]
        bars.barh([LABELS[k] for k in top], p[top], color="tab:blue" if right else "crimson")
        bars.set_xlim(0, 1)
        bars.set_xticks([])
        bars.spines[:].set_visible(False)
        bars.tick_params(length=0)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    run(main)
