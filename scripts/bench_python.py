"""The Python side of bench_cpp.py: one setting in a process of its own, told as JSON.

python scripts/bench_python.py torchscript 16 50 artifacts/fashion_mnist.pt    # batch 16, 50 calls

It imports what such a program needs and no more, since its start is measured too.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nin.contract import load_contract
from nin.paths import NIN

SHAPE = load_contract(NIN).classifier_graph.input.shape
WARMUP = 10  # as nin_classify's

Call = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def main() -> None:
    setting, batch, repetitions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    call = SETTINGS[setting]()
    pixels = torch.randint(256, (batch, *SHAPE), dtype=torch.uint8)
    with torch.inference_mode():
        first_ms = timed_ms(call, pixels)
        measured = {"first_ms": first_ms}
        if repetitions:
            for _ in range(WARMUP - 1):
                call(pixels)
            times = sorted(timed_ms(call, pixels) for _ in range(repetitions))
            measured["median_ms"] = times[(len(times) - 1) // 2]
            measured["p95_ms"] = times[-(-95 * len(times) // 100) - 1]
        measured["peak_memory_mib"] = peak_memory_mib()
        if repetitions:
            measured["logit_error"], measured["budget"] = golden_error(call)
    print(json.dumps(measured))


def timed_ms(call: Call, pixels: torch.Tensor) -> float:
    start = time.perf_counter()
    call(pixels)
    return (time.perf_counter() - start) * 1000


def peak_memory_mib() -> float:
    """Linux's own count: getrusage's is at least the memory of the process that started this."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def golden_error(call: Call) -> tuple[float, float]:
    """The largest error on the golden vectors of the artifact, and what is allowed."""
    files = {"golden": ""}
    torch.jit.load(sys.argv[4], _extra_files=files)  # type: ignore[no-untyped-call]
    from nin.gate.golden import Golden

    golden = Golden.from_json(files["golden"])
    found = call(torch.tensor(golden.inputs))[0].float().numpy()
    return float(abs(found - golden.outputs["logits"]).max()), golden.budget["logits"]


def torchscript() -> Any:
    return torch.jit.load(sys.argv[4])  # type: ignore[no-untyped-call]


def eager() -> torch.nn.Module:
    from nin.network.build import load_model

    model = load_model(NIN)
    return model.module(model.contract.classifier_graph)


def traced(module: torch.nn.Module) -> Any:
    with torch.inference_mode():
        pixels = torch.zeros(2, *SHAPE, dtype=torch.uint8)
        return torch.jit.freeze(torch.jit.trace(module, pixels))  # type: ignore[no-untyped-call]


def optimized() -> torch.jit.ScriptModule:
    return torch.jit.optimize_for_inference(torchscript())


def without_profiling() -> torch.jit.ScriptModule:
    torch._C._set_graph_executor_optimize(False)
    return optimized()


def one_thread() -> torch.jit.ScriptModule:
    torch.set_num_threads(1)
    return optimized()


SETTINGS: dict[str, Callable[[], Call]] = {
    "eager": eager,
    "torchscript": torchscript,
    "channels-last": lambda: traced(eager().to(memory_format=torch.channels_last)),
    "bf16": lambda: traced(eager().bfloat16()),
    "optimize_for_inference": optimized,
    "the same, no profiling": without_profiling,
    "the same, one thread": one_thread,
}


if __name__ == "__main__":
    main()
