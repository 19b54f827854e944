"""The instruction sets that machine code is compiled for, and which of them this CPU has."""

import platform
from dataclasses import dataclass

import torch

from nin.errors import InputError


@dataclass(frozen=True)
class InstructionSet:
    """What a compiler may use, and what a CPU must have to run it. C++ has the same list."""

    name: str
    march: str  # as GCC and clang name it
    vector_bits: int
    features: tuple[str, ...]  # as torch.cpu.get_capabilities names them


_AVX2 = ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt")
_AVX512 = (*_AVX2, "avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")

# The best first.
_SETS = (
    InstructionSet("avx512_vnni", "x86-64-v4", 512, (*_AVX512, "avx512_vnni")),
    InstructionSet("avx512", "x86-64-v4", 512, _AVX512),
    InstructionSet("avx2", "x86-64-v3", 256, _AVX2),
)


def best_instruction_set() -> InstructionSet:
    """The best that this machine runs. Raises InputError where it has none of them."""
    for instructions in _SETS:
        if not _missing(instructions):
            return instructions
    raise InputError(
        f"this {platform.machine()} CPU has no AVX2, the least that a .pt2 is compiled for; "
        "export to ONNX or TorchScript"
    )


def check_instruction_set(name: str) -> None:
    """Raises InputError where this CPU can't run machine code of the instruction set."""
    known = {instructions.name: instructions for instructions in _SETS}
    if name not in known:
        raise InputError(
            f"it holds machine code for {name!r}, known are {', '.join(known)}; "
            "export it with this version of the project"
        )
    if missing := _missing(known[name]):
        raise InputError(
            f"it holds machine code for {name}, but this CPU has no {', '.join(missing)}; "
            "export it on a machine like this one, or use the ONNX or the TorchScript file"
        )


def _missing(instructions: InstructionSet) -> list[str]:
    capabilities = torch.cpu.get_capabilities()
    return [feature for feature in instructions.features if not capabilities.get(feature)]
