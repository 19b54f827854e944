"""Which device and which precision, and how several processes train as one."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from nin.errors import InputError
from nin.terminal import processor


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started; alone, it is number 0 of 1."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Only the first one prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which of many things are this process's: every n-th one."""
        return slice(self.rank, None, self.world)

    def any(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """Of each flag, whether it is up in any process; all must call."""
        if self.world == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.float32, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The values added up over the processes; all must call."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values


@contextmanager
def process_group(device: torch.device) -> Iterator[Process]:
    """Joins the processes that torchrun started, if it did."""
    if not dist.is_torchelastic_launched():
        yield Process()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that trains: where, in which precision, compiled or not."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or the best there is")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the products; auto: bfloat16 where the hardware has it",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run through torch.compile; on a CPU in float32, without the folded "
        "stem and Winograd's convolutions",
    )


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, each process its own.

    Raises InputError where it isn't there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(
            f"no device {name} here ({reason}); choose `cpu`, or `cuda` with NVIDIA's driver"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"can't train on {name}: expected `cpu` or `cuda`")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def find_precision(name: str, device: torch.device) -> str:
    """The dtype of the products; `auto` is bfloat16 where the device has it in hardware.

    A processor without it multiplies bfloat16 a hundred times slower than float32.
    """
    if name == "auto":
        return "bfloat16" if _has_bfloat16(device) else "float32"
    return name


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def processor_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"
