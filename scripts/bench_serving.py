"""What serving costs: the embedded Triton under NVIDIA's perf_analyzer, against onnxruntime itself.

python scripts/bench_serving.py                          # some minutes; results in artifacts/bench
python scripts/bench_serving.py --seconds 1 --rounds 1   # a quick look
"""

import argparse
import base64
import csv
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from operator import sub, truediv
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import onnxruntime
import tritonclient.http
from numpy.typing import NDArray
from tqdm import tqdm
from tritonclient.utils import np_to_triton_dtype

from nin.client import Client
from nin.contract import Run, load_contract
from nin.errors import CheckError, InputError
from nin.export.artifact import read_artifact
from nin.files import atomic_path, make_folder, write_atomically
from nin.gate.reference import batch_for
from nin.gate.runtimes.ort import OrtRuntime
from nin.network.classifier import Preprocess
from nin.paths import ARTIFACTS, NIN, ROOT, TRITON
from nin.samples import open_samples
from nin.serve.server import RELEASE, Server, serve_artifacts
from nin.terminal import parser, positive, processor, run, short, table

WHEEL = "tritonclient==2.50.0"  # of Triton 24.10; the last ones carry no perf_analyzer
BINARY = ROOT / ".perf_analyzer" / "bin" / "perf_analyzer"
# What it links to that few systems have. The server's wheel carries them, under hashed names.
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")

CONTRACT = load_contract(NIN)
GRAPHS = {model.name: model.graph for model in CONTRACT.models}
PIXELS, FLOATS = CONTRACT.name, f"{CONTRACT.network.name}_onnx"
IN_PROCESS, SERVED = "in-process", "served"
CONCURRENCIES = (1, 4, 16, 64)
BATCH = 16
IMAGES = 16  # test images that all requests are made of
WINDOWS = 3  # perf_analyzer reports no fewer

# The aims: of serving one image, at these concurrencies.
RATIO, RATIO_AT = 0.9, 16
DELAY_MS, DELAY_AT = 3.0, 1


class Point(NamedTuple):
    """What is measured: requests of `batch` images to `model`, `concurrency` at any time."""

    model: str
    batch: int
    concurrency: int


# Runs perf_analyzer with the options that it is called with.
Command = Callable[..., subprocess.CompletedProcess[str]]
# Images a second, and milliseconds: both are plain numbers by name.
Measured = dict[str, float]
# A round's measurements, by point and side.
Round = dict[tuple[Point, str], Measured]


def main() -> None:
    args = parse_args()
    make_folder(args.output)
    with (
        perf_analyzer(args.perf_analyzer) as command,
        serve_artifacts(CONTRACT, args.artifacts) as server,
    ):
        facts = machine(server)
        rounds = measure(args, facts["device"], command, server)
    data = {
        "facts": facts,
        "rounds": [
            [{**p._asdict(), "side": side, **m} for (p, side), m in r.items()] for r in rounds
        ],
    }
    page = describe(facts, rounds)
    write_atomically(args.output / "serving.json", f"{json.dumps(data, indent=2)}\n".encode())
    write_atomically(args.output / "serving.md", page.encode())
    draw(rounds, facts, args.output / "serving.png")
    print(page)
    names = ", ".join(short(args.output.resolve() / f"serving.{s}") for s in ("md", "png", "json"))
    print(f"Written: {names}")


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--seconds", type=positive, default=5, help="of measuring, for each point")
    options.add_argument(
        "--rounds", type=positive, default=3, help="of the whole sweep; medians are reported"
    )
    options.add_argument(
        "--concurrency", type=positive, nargs="+", default=CONCURRENCIES, help="requests at a time"
    )
    options.add_argument("--protocol", choices=("grpc", "http"), default="grpc", help="to serve by")
    options.add_argument(
        "--artifacts", type=Path, default=ARTIFACTS, help="folder with the exports to serve"
    )
    options.add_argument(
        "--perf-analyzer", type=Path, default=BINARY, help="the binary of NVIDIA's perf_analyzer"
    )
    options.add_argument(
        "--output", type=Path, default=ARTIFACTS / "bench", help="folder to write to"
    )
    return options.parse_args()


# Measuring


@contextmanager
def perf_analyzer(binary: Path) -> Iterator[Command]:
    """Yields what runs perf_analyzer with options. Raises InputError where it can't be run."""
    if not binary.is_file():
        raise InputError(
            f"no perf_analyzer at {short(binary)}; get NVIDIA's with "
            f"`python -m pip install --no-deps --target {short(BINARY.parents[1])} {WHEEL}`"
        )
    with tempfile.TemporaryDirectory(prefix="nin-bench-") as folder:
        for name in LIBRARIES:
            stem, _, suffix = name.partition(".so")
            for library in TRITON.glob(f"nvidia_pytriton.libs/{stem}-*.so{suffix}*"):
                Path(folder, name).symlink_to(library)
        path = ":".join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH"))))
        environment = {**os.environ, "LD_LIBRARY_PATH": path}
        command = partial(_run, str(binary.resolve()), environment)
        if (started := command("--version")).returncode:
            raise InputError(f"{short(binary)} doesn't start: {last_line(started)}")
        yield command


def _run(
    binary: str, environment: dict[str, str], *options: object
) -> subprocess.CompletedProcess[str]:
    # whatever ends this process, Ctrl-C too, subprocess.run kills what it has started
    return subprocess.run(  # noqa: S603
        [binary, *map(str, options)], capture_output=True, text=True, env=environment
    )


def last_line(ended: subprocess.CompletedProcess[str]) -> str:
    lines = f"{ended.stdout}\n{ended.stderr}".split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def measure(args: argparse.Namespace, device: str, command: Command, server: Server) -> list[Round]:
    """All rounds, each with the whole plan."""
    pixels = open_samples(CONTRACT).pixels(range(IMAGES))
    todo = plan(args.concurrency)
    rounds: list[Round] = [{} for _ in range(args.rounds)]
    with (
        Client(server.http) as client,
        tempfile.TemporaryDirectory(prefix="nin-bench-") as folder,
        tqdm(total=len(todo) * args.rounds, disable=None, leave=False) as bar,
    ):
        options = ("-i", args.protocol, "-u", getattr(server, args.protocol))
        data = {name: write_input(name, pixels, Path(folder)) for name in (PIXELS, FLOATS)}
        for found in rounds:
            for point, side in todo:
                bar.set_description(f"{point.model} {point.batch}x{point.concurrency} {side}")
                if side == IN_PROCESS:
                    runtime = open_in_process(args.artifacts, device)
                    found[point, side] = in_process(runtime, point, pixels, args.seconds)
                    del runtime  # and with it threads that spin beside the server's
                else:
                    analyze = partial(command, *options, "--input-data", data[point.model])
                    found[point, side] = served(analyze, point, client, args.seconds)
                bar.update()
    return rounds


def plan(concurrencies: Sequence[int]) -> list[tuple[Point, str]]:
    """The measurements of a round, in their order: what is compared is next to each other."""
    todo = []
    for number in dict.fromkeys(concurrencies):
        point = Point(PIXELS, 1, number)
        todo += [(point, IN_PROCESS), (point, SERVED)]
        if number in (DELAY_AT, RATIO_AT):
            todo += [(point._replace(model=FLOATS), SERVED)]
    big = Point(PIXELS, BATCH, 1)
    return [*todo, (big, IN_PROCESS), (big, SERVED)]


def write_input(model: str, pixels: NDArray[np.uint8], folder: Path) -> Path:
    """The images in perf_analyzer's format: requests take one after the other."""
    graph = GRAPHS[model]
    images = batch_for(Preprocess(CONTRACT), graph, pixels)
    texts = [base64.b64encode(image.tobytes()).decode() for image in images]
    path = folder / f"{model}.json"
    path.write_text(json.dumps({"data": [{graph.input.name: {"b64": text}} for text in texts]}))
    return path


def open_in_process(artifacts: Path, device: str) -> Run:
    """The artifact in onnxruntime, with its defaults, on the device that the server has chosen."""
    graph = CONTRACT.classifier_graph
    data = read_artifact(artifacts, f"{graph.name}.onnx")
    return OrtRuntime(data, graph, device="cuda" if device == "GPU" else "cpu")


def in_process(runtime: Run, point: Point, pixels: NDArray[np.uint8], seconds: float) -> Measured:
    """Calls from as many threads as there are requests at a time."""
    batches = [pixels[i : i + point.batch] for i in range(0, len(pixels), point.batch)]
    spans: list[list[tuple[float, float]]] = [[] for _ in range(point.concurrency)]
    stop = Event()
    with ThreadPoolExecutor(point.concurrency) as pool:
        try:
            calls = [pool.submit(call_until, stop, runtime, batches, own) for own in spans]
            # time runs from when every thread has had its first answer
            while not all(spans) and not any(call.done() for call in calls):
                time.sleep(0.01)
            start = time.perf_counter()
            time.sleep(seconds)
            end = time.perf_counter()
        finally:
            stop.set()
    for call in calls:
        call.result()
    ms = [1000 * (b - a) for own in spans for a, b in own if start < b <= end]
    if not ms:
        raise CheckError(f"no call of {point} ended within {seconds} s; give more --seconds")
    p50, p95, p99 = np.percentile(ms, (50, 95, 99)).tolist()
    rate = len(ms) * point.batch / (end - start)
    return {
        "images_per_s": rate, "mean_ms": sum(ms) / len(ms),
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
    }  # fmt: skip


def call_until(
    stop: Event, runtime: Run, batches: Sequence[NDArray[Any]], spans: list[tuple[float, float]]
) -> None:
    while not stop.is_set():
        start = time.perf_counter()
        runtime(batches[len(spans) % len(batches)])
        spans.append((start, time.perf_counter()))


def served(analyze: Command, point: Point, client: Client, seconds: float) -> Measured:
    """perf_analyzer's numbers, and the server's own account of the same requests."""
    with tempfile.TemporaryDirectory(prefix="nin-bench-") as folder:
        report = Path(folder) / "report.csv"
        window_ms = 1000 * seconds // WINDOWS
        # a window in which no request ended makes it give up: then longer ones
        for length in (window_ms, 3 * window_ms, 9 * window_ms):
            before = client.statistics(point.model)
            ended = analyze(
                *("-m", point.model, "-b", point.batch),
                *("--concurrency-range", point.concurrency),
                # three windows are reported as one, however much they differ
                *("-p", length, "-r", WINDOWS, "-s", 999),
                *("-f", report, "--verbose-csv"),
            )
            if ended.returncode == 0:
                after = client.statistics(point.model)
                return {**read_report(report.read_text()), **account(before, after)}
    raise CheckError(f"perf_analyzer gives up on {point}: {last_line(ended)}")


def read_report(text: str) -> Measured:
    """The client's side, from perf_analyzer's CSV: one row, microseconds."""
    [row] = csv.DictReader(text.splitlines())
    columns = {"mean_ms": "Avg", "p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99"}
    return {
        "images_per_s": float(row["Inferences/Second"]),
        **{name: float(row[f"{column} latency"]) / 1000 for name, column in columns.items()},
    }


STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


def account(before: dict[str, Any], after: dict[str, Any]) -> Measured:
    """The server's side: means of the requests between two states of its statistics."""

    def grown(kind: str, field: str) -> int:
        new, old = (s["inference_stats"][kind][field] for s in (after, before))
        return int(new) - int(old)

    if failed := grown("fail", "count"):
        raise CheckError(f"the server failed {failed} requests")
    requests = grown("success", "count")
    images = after["inference_count"] - before["inference_count"]
    executions = after["execution_count"] - before["execution_count"]
    busy = [
        sum(row[stage]["ns"] for row in s["batch_stats"] for stage in STAGES[1:])
        for s in (after, before)
    ]
    return {
        **{f"{stage}_ms": grown(stage, "ns") / requests / 1e6 for stage in STAGES},
        "executed_batch": images / executions,
        "busy_ms_per_image": (busy[0] - busy[1]) / images / 1e6,
    }


def machine(server: Server) -> dict[str, str]:
    """What the numbers depend on, before anything is measured."""
    with Client(server.http) as client:
        group = client.config(PIXELS)["instance_group"][0]
    return {
        "command": shlex.join(["python", "scripts/bench_serving.py", *sys.argv[1:]]),
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f}",
        "device": group["kind"].removeprefix("KIND_"),
        "triton": RELEASE,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
    }


# Telling


def middle(rounds: Sequence[Round]) -> Round:
    """The median of every number over the rounds."""
    return {
        key: {name: median(r[key][name] for r in rounds) for name in rounds[0][key]}
        for key in rounds[0]
    }


def typical(rounds: Sequence[Round], point: Point) -> dict[str, float]:
    """A served request's mean time in ms by stage: of the round in which it is the median.

    Medians of the stages wouldn't add up: the batcher trades one for another.
    """
    measured = sorted((r[point, SERVED] for r in rounds), key=lambda m: m["mean_ms"])
    found = measured[(len(measured) - 1) // 2]
    inside = {stage: found[f"{stage}_ms"] for stage in STAGES}
    return {**inside, "elsewhere": found["mean_ms"] - sum(inside.values())}


def describe(facts: dict[str, str], rounds: Sequence[Round]) -> str:
    """The Markdown page."""
    return f"""# Serving against in-process

{facts["processor"]}, {facts["cores"]} cores, load average {facts["load"]} before the start; model \
on the {facts["device"]}. Triton {facts["triton"]} (embedded), onnxruntime {facts["onnxruntime"]}, \
Python {facts["python"]}. The load generator runs on the same cores as the server.

```console
$ {facts["command"]}
```

Rounds: {len(rounds)}; all numbers are medians over them. In a round, what is compared is \
measured one after the other; a ratio is the median of the rounds' ratios, its range in brackets.

## The aims

{aims(rounds)}

## Throughput and latency of `{PIXELS}`

In-process: that many threads call one onnxruntime session. Served: perf_analyzer keeps that many \
requests in flight.

{speed_table(rounds)}

![The same as curves](serving.png)

## Where a served request spends its time

Means in ms, by the server's statistics API, of the round with the median mean, so that they add \
up. Compute includes the way to the model's process and back. Elsewhere is what the client waits \
beyond the server's account: transport and the load generator. The executed batch is what the \
dynamic batcher made of the requests.

{stages_table(rounds)}

## Pixels against floats

The classifier takes pixels as they are, the network of the book 224x224 floats.

{floats_table(rounds)}
"""


def compare(
    rounds: Sequence[Round], point: Point, name: str, how: Callable[[float, float], float],
    other: tuple[Point, str] | None = None,
) -> list[float]:  # fmt: skip
    """Each round's served number against its in-process (or other) one, in ascending order."""
    other = other or (point, IN_PROCESS)
    return sorted(how(r[point, SERVED][name], r[other][name]) for r in rounds)


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the range that it comes from."""
    low, high = (format(value, form) for value in (values[0], values[-1]))
    return f"{median(values):{form}}" + (f" ({low} to {high})" if len(values) > 1 else "")


def speed_table(rounds: Sequence[Round]) -> str:
    found = middle(rounds)
    rows = []
    for point in dict.fromkeys(point for point, side in found if side == IN_PROCESS):
        sides = [found[point, side] for side in (IN_PROCESS, SERVED)]
        rows.append(
            (
                *map(str, (point.batch, point.concurrency)),
                *(f"{side['images_per_s']:.1f}" for side in sides),
                spread(compare(rounds, point, "images_per_s", truediv), ".2f"),
                *(
                    " / ".join(f"{side[f'{p}_ms']:.1f}" for p in ("p50", "p95", "p99"))
                    for side in sides
                ),
            )
        )
    header = ("batch", "concurrency", "in-process images/s", "served images/s", "ratio",
              "in-process p50 / p95 / p99 ms", "served p50 / p95 / p99 ms")  # fmt: skip
    return table(header, rows)


def stages_table(rounds: Sequence[Round]) -> str:
    found = middle(rounds)
    rows = []
    for point in sorted(point for point, side in found if side == SERVED):
        times = typical(rounds, point)
        rows.append(
            (
                point.model, str(point.batch), str(point.concurrency),
                f"{sum(times.values()):.2f}", *(f"{ms:.2f}" for ms in times.values()),
                f"{found[point, SERVED]['executed_batch']:.1f}",
            )
        )  # fmt: skip
    header = ("model", "batch", "concurrency", "mean", "queue", "compute input", "compute infer",
              "compute output", "elsewhere", "executed batch")  # fmt: skip
    return table(header, rows)


def aims(rounds: Sequence[Round]) -> str:
    """Each aim with its verdict, as a list."""
    found = middle(rounds)
    many, one = Point(PIXELS, 1, RATIO_AT), Point(PIXELS, 1, DELAY_AT)
    lines = []
    if (many, SERVED) in found:
        ratios = compare(rounds, many, "images_per_s", truediv)
        lacking = 100 * (RATIO - median(ratios))
        verdict = "met" if lacking <= 0 else f"missed by {lacking:.1f} percentage points"
        lines += [
            f"- Throughput at concurrency {RATIO_AT}, at least {RATIO:.0%} of in-process: "
            f"**{verdict}**, {spread(ratios, '.1%')}. {cost(rounds, many)} {best(found, many)}"
        ]
    if (one, SERVED) in found:
        delays = compare(rounds, one, "p50_ms", sub)
        excess = median(delays) - DELAY_MS
        verdict = "met" if excess <= 0 else f"missed by {excess:.2f} ms"
        lines += [
            f"- p50 at concurrency {DELAY_AT}, at most {DELAY_MS:g} ms above in-process: "
            f"**{verdict}**, {spread(delays, '+.2f')} ms. {cost(rounds, one)}"
        ]
    return "\n".join(lines) or f"Not measured: they are for concurrency {DELAY_AT} and {RATIO_AT}."


def cost(rounds: Sequence[Round], point: Point) -> str:
    """Where the time goes: of a request, and of the one model that all requests wait for."""
    found, times = middle(rounds), typical(rounds, point)
    measured, alone = found[point, SERVED], found[point, IN_PROCESS]
    total = sum(times.values())
    compute = sum(times[stage] for stage in STAGES[1:])
    each, busy = 1000 / measured["images_per_s"], measured["busy_ms_per_image"]
    return (
        f"A request's {total:.1f} ms are {times['queue'] / total:.1%} queue, "
        f"{compute / total:.1%} compute, {times['elsewhere'] / total:.1%} elsewhere. "
        f"The server takes {each:.2f} ms an image: {busy:.2f} compute, {each - busy:.2f} "
        f"between two batches; in-process takes {1000 / alone['images_per_s']:.2f} ms."
    )


def best(found: Round, point: Point) -> str:
    """A dynamic batcher may win against unbatched calls: the best that calls can do, too."""
    rates = {p: m["images_per_s"] for (p, side), m in found.items() if side == IN_PROCESS}
    top = max(rates, key=lambda p: rates[p])
    return (
        f"The best in-process throughput of all is {rates[top]:.1f} images/s (batch {top.batch}, "
        f"concurrency {top.concurrency}): "
        f"{found[point, SERVED]['images_per_s'] / rates[top]:.1%} of that."
    )


def floats_table(rounds: Sequence[Round]) -> str:
    found = middle(rounds)
    points = [point for point, _ in found if point.model == PIXELS and point.batch == 1]
    points = [p for p in dict.fromkeys(points) if (p._replace(model=FLOATS), SERVED) in found]
    rows = []
    for point in points:
        floats = point._replace(model=FLOATS), SERVED
        ratios = compare(rounds, point, "images_per_s", truediv, floats)
        for name, ratio in ((PIXELS, spread(ratios, ".2f")), (FLOATS, "1")):
            measured = found[point._replace(model=name), SERVED]
            times = typical(rounds, point._replace(model=name))
            tensor, body = request_bytes(name)
            rows.append(
                (
                    f"{name}, {GRAPHS[name].input.name}", f"{tensor:,}", f"{body:,}",
                    str(point.concurrency), f"{measured['images_per_s']:.1f}", ratio,
                    f"{measured['p50_ms']:.2f}", f"{times['compute_input']:.2f}",
                    f"{times['elsewhere']:.2f}",
                )
            )  # fmt: skip
    header = ("model, input", "tensor bytes", "HTTP body bytes", "concurrency", "requests/s",
              "ratio", "p50 ms", "compute input ms", "elsewhere ms")  # fmt: skip
    return table(header, rows) if rows else "Not measured."


def request_bytes(model: str) -> tuple[int, int]:
    """Of one image: the tensor, and the whole body of the HTTP request."""
    tensor = GRAPHS[model].input
    array = np.zeros((1, *tensor.shape), tensor.dtype)
    described = tritonclient.http.InferInput(
        tensor.name, list(array.shape), np_to_triton_dtype(array.dtype)
    )
    described.set_data_from_numpy(array)
    body, _ = tritonclient.http.InferenceServerClient.generate_request_body([described])
    return array.nbytes, len(body)


def draw(rounds: Sequence[Round], facts: dict[str, str], path: Path) -> None:
    """Throughput and latency against concurrency; dots are the rounds, lines their medians."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = middle(rounds)
    points = sorted(p for p, side in found if side == IN_PROCESS and p.batch == 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    figure.suptitle(
        f"{PIXELS}, one image a request: Triton {facts['triton']} against onnxruntime "
        f"{facts['onnxruntime']}\n{facts['processor']}, {facts['cores']} cores, {facts['device']}"
    )
    for side, colour in ((IN_PROCESS, "tab:orange"), (SERVED, "tab:blue")):
        curve(left, rounds, points, side, "images_per_s", color=colour, label=side)
        big = found[Point(PIXELS, BATCH, 1), side]["images_per_s"]
        left.axhline(big, color=colour, ls=":", label=f"{side}, one caller with batches of {BATCH}")
        for name, dashes in (("p50", "-"), ("p95", "--")):
            label = f"{side}, {name}"
            curve(right, rounds, points, side, f"{name}_ms", color=colour, ls=dashes, label=label)
    left.set_ylabel("throughput (images/s)")
    left.set_ylim(bottom=0)
    right.set_ylabel("latency (ms)")
    right.set_yscale("log")
    right.yaxis.set_major_formatter("{x:g}")
    ticks = [p.concurrency for p in points]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel("concurrency (requests in flight)")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)


def curve(
    axes: Any, rounds: Sequence[Round], points: Sequence[Point], side: str, name: str, **style: Any
) -> None:
    x = [p.concurrency for p in points]
    found = middle(rounds)
    axes.plot(x, [found[p, side][name] for p in points], marker="o", **style)
    for each in rounds:
        y = [each[p, side][name] for p in points]
        axes.scatter(x, y, s=12, color=style["color"], alpha=0.4)


if __name__ == "__main__":
    run(main)
