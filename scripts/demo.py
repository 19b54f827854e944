"""The main job in one go: export a trained model, prove the exports, serve and use them.

python scripts/demo.py                              # the built-in model, by its shipped weights
python scripts/demo.py --model models/resnet18      # or any other

`make demo` makes the environment first.
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

from nin.artifact.manifest import read_artifact
from nin.commands.options import artifacts_of
from nin.contract import Contract, load_contract
from nin.errors import CheckError, InputError
from nin.export.formats import ONNX
from nin.files import atomic_path, write_atomically
from nin.images import encode_png
from nin.paths import CPP_TOOLS, NIN, ROOT
from nin.runtimes.cpp import cpp_tools_are_built
from nin.samples import SampleSet, open_samples
from nin.serve.server import PORTS, RELEASE, find_tritonserver, serve
from nin.terminal import image_count, parser, run, short

PICTURE = "demo.png"
SHOWN = 10


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, default=NIN, help="the model's folder")
    options.add_argument(
        "--images", type=image_count, default=256, help="samples for the parity gate, or `all`"
    )
    options.add_argument("--output", type=Path, help="folder to write to, if not the exports' own")
    args = options.parse_args()
    contract = load_contract(args.model.resolve())
    output = artifacts_of(contract, args.output).resolve()
    os.chdir(ROOT)  # where the commands that it shows are typed
    start = time.perf_counter()
    model = () if contract.folder == NIN else ("--model", short(contract.folder))
    with step("1/6 Export the trained network to ONNX"):
        nin("export", "onnx", *model, "--output", short(output))
        if contract.calibration:
            nin("export", "onnx", *model, "--precision", "int8", "--output", short(output))
    with step("2/6 Export it to TorchScript"):
        nin("export", "torchscript", *model, "--output", short(output))
    with step("3/6 The parity gate: does every runtime, and the server, answer like the network?"):
        nin(
            *("verify", *model, "--images", str(args.images or "all")),
            *("--artifacts", short(output), "--report", short(output / "parity")),
        )
    samples = open_samples(contract)
    indices = choose(samples)
    pixels = samples.pixels(indices)
    files = [output / "images" / f"sample-{index}.png" for index in indices]
    for image, file in zip(pixels, files, strict=True):
        write_atomically(file, encode_png(image))
    pictures = list(map(short, files))
    with step("4/6 Serve them with Triton, and ask it over HTTP and gRPC, from Python and C++"):
        try:
            find_tritonserver()
        except InputError as error:
            print(f"left out: {error}")
        else:
            ask_server(output, model, pictures)
    with step("5/6 Classify in C++, without Python and without a server"):
        if cpp_tools_are_built():
            tool("nin_classify", *pictures, "--model", short(output / f"{contract.name}.pt"))
        else:
            print("left out: the C++ tools aren't built; see `make cpp`")
    with step("6/6 Draw the images with their predictions"):
        name = f"{contract.name}{ONNX.suffix}"
        runtime = ONNX.open(read_artifact(output, name), contract.classifier_graph)
        outputs = [runtime(image[None])["probabilities"][0] for image in pixels]
        classes = None if samples.classes is None else samples.classes[indices]
        draw(contract, pixels, classes, np.stack(outputs), output / PICTURE)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Look at {short(output / PICTURE)}")


def choose(samples: SampleSet) -> list[int]:
    """The first sample of every class where they are known, else the first ones."""
    if samples.classes is None:
        return list(range(min(SHOWN, len(samples))))
    return sorted(np.unique(samples.classes, return_index=True)[1].tolist())[:SHOWN]


@contextmanager
def step(title: str) -> Iterator[None]:
    print(f"\n==> {title}", flush=True)
    start = time.perf_counter()
    yield
    print(f"    {time.perf_counter() - start:.1f} s", flush=True)


def nin(*arguments: str) -> None:
    """Runs one of the project's commands as a person would, and ends the demo where it fails."""
    print(f"$ nin {shlex.join(arguments)}", flush=True)
    code = subprocess.run([Path(sys.executable).with_name("nin"), *arguments]).returncode
    if code:
        failure = InputError if code == 2 else CheckError
        raise failure(f"nin {arguments[0]} ended with exit code {code}")


def tool(name: str, *options: str) -> None:
    """Runs one of the C++ programs as a person would."""
    path = CPP_TOOLS / name
    print(f"$ {shlex.join([short(path), *options])}", flush=True)
    if code := subprocess.run([path, *options]).returncode:
        raise CheckError(f"{name} ended with exit code {code}")


def ask_server(output: Path, model: tuple[str, ...], pictures: list[str]) -> None:
    """Publishes the exports, serves them, and classifies PNG files by every client."""
    repository = output / "model_repository"
    options = ("--artifacts", short(output), "--repository", short(repository), "--keep", "2")
    nin("publish", *model, *options)
    with serve(repository, ports=dict.fromkeys(PORTS, 0)) as server:
        print(f"Triton {RELEASE} is ready on {server.http} (HTTP) and {server.grpc} (gRPC)")
        nin("classify", *pictures, "--url", server.http)
        grpc = ("--protocol", "grpc", "--url", server.grpc)
        nin("classify", *pictures[:3], "--top", "3", *grpc)
        if cpp_tools_are_built():
            tool("nin_triton", *pictures[:3], "--top", "3", "--url", server.http)
    print("The server has stopped.")


def draw(
    contract: Contract, pixels: NDArray[np.uint8], classes: NDArray[np.int64] | None,
    probabilities: NDArray[np.float32], path: Path,
) -> None:  # fmt: skip
    """Each image above the bars of its three most probable classes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(pixels) // 5)
    figure, axes = plt.subplots(
        2 * rows, 5, figsize=(13, 3.75 * rows), height_ratios=[3, 1] * rows, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    figure.suptitle(f"Samples, classified by {contract.name}{ONNX.suffix} in onnxruntime")
    for empty in axes.flat:
        empty.axis("off")
    labels = [plain(label) for label in contract.labels]
    for i, (image, p) in enumerate(zip(pixels, probabilities, strict=True)):
        right = classes is None or p.argmax() == classes[i]
        picture, bars = axes[2 * (i // 5), i % 5], axes[2 * (i // 5) + 1, i % 5]
        picture.imshow(image, cmap="gray_r")
        truth = "" if right or classes is None else f"\nis {labels[classes[i]]}"
        picture.set_title(
            f"{labels[p.argmax()]} {p.max():.1%}{truth}", color="black" if right else "crimson"
        )
        top = p.argsort()[-3:]
        bars.axis("on")
        bars.barh([labels[k] for k in top], p[top], color="tab:blue" if right else "crimson")
        bars.set_xlim(0, 1)
        bars.set_xticks([])
        bars.spines[:].set_visible(False)
        bars.tick_params(length=0)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def plain(label: str) -> str:
    """A label that fits, and that matplotlib doesn't take for a formula."""
    return (label if len(label) < 20 else f"{label[:18]}…").replace("$", r"\$")


if __name__ == "__main__":
    run(main)
