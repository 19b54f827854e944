"""Exports the trained network and the classifier around it.

nin export onnx                                # both graphs, for any recent onnxruntime
nin export onnx --precision int8               # the classifier with 8-bit weights and activations
nin export onnx --target-triton 24.10          # the newest opset that this release loads
nin export pt2                                 # machine code by AOTInductor, for C++
nin export torchscript --model models/resnet18
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from nin.commands.options import ARTIFACTS_HELP, add_model_options, artifacts_of
from nin.contract import Contract
from nin.errors import InputError
from nin.export.exporting import export_model
from nin.export.formats import FORMATS, TORCHSCRIPT, Format
from nin.export.onnx_file import DEFAULT_OPSET, OPSETS, choose_opset, ir_version
from nin.export.operators import younger_operators
from nin.network.build import load_model
from nin.releases import UNKNOWN, triton_release

_FORMATS: dict[tuple[str, str], Format] = {(f.name, f.precision): f for f in FORMATS.values()}
_NAMES, _PRECISIONS = (list(dict.fromkeys(values)) for values in zip(*_FORMATS, strict=True))


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("format", choices=_NAMES, help="the format of the files")
    add_model_options(options)
    options.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="float32",
        help="int8 is calibrated on the images that model.toml names as [calibration]",
    )
    options.add_argument(
        "--graph",
        default="all",
        help="the graph to export, by its name in model.toml; `all` is the classifier alone for "
        "int8 and pt2",
    )
    options.add_argument("--output", type=Path, help=f"folder to write to; {ARTIFACTS_HELP}")
    options.add_argument(
        "--force", action="store_true", help="overwrite files that aren't exports of this project"
    )
    options.add_argument(
        "--opset",
        type=int,
        help=f"of ONNX, {OPSETS[0]} to {OPSETS[-1]}; {DEFAULT_OPSET} if neither this nor a target "
        "is given",
    )
    options.add_argument(
        "--target-triton", metavar="YY.MM", help="the release of Triton that shall load the export"
    )


def execute(args: argparse.Namespace) -> None:
    fmt = _for_target(_format(args.format, args.precision), args)
    model = load_model(args.model, args.weights)
    output = artifacts_of(model.contract, args.output)
    graphs = _graphs(model.contract, args.graph, fmt)
    export_model(model, fmt, output, graphs=graphs, data_dir=args.data_dir, force=args.force)
    if fmt is TORCHSCRIPT and args.target_triton:
        for name in graphs:
            _say_what_is_younger((output / f"{name}{fmt.suffix}"), args.target_triton)


def _format(name: str, precision: str) -> Format:
    if (name, precision) not in _FORMATS:
        others = [other for other, known in _FORMATS if known == precision]
        raise InputError(f"{name} has no {precision}; use {' or '.join(others)}")
    return _FORMATS[name, precision]


def _for_target(fmt: Format, args: argparse.Namespace) -> Format:
    """The format with the opset that the options ask for."""
    if fmt.opset is None:
        if args.opset is not None:
            raise InputError(f"--opset is ONNX's; {fmt.name} has none")
        if args.target_triton:
            triton_release(args.target_triton)  # unknown ones end it now
            if fmt is not TORCHSCRIPT:
                raise InputError(f"--target-triton is for what Triton serves; {fmt.name} isn't")
        return fmt
    opset = choose_opset(args.opset, args.target_triton)
    return replace(
        fmt, compile=partial(fmt.compile, opset=opset), opset=opset, ir_version=ir_version(opset)
    )


def _graphs(contract: Contract, graph: str, fmt: Format) -> list[str]:
    names = list(contract.graphs)
    if graph == "all" and not fmt.all_graphs:
        return [contract.name]
    if graph != "all" and graph not in names:
        raise InputError(f"no graph {graph} in {contract.folder}; it has {', '.join(names)}")
    return names if graph == "all" else [graph]


def _say_what_is_younger(path: Path, target: str) -> None:
    torch = triton_release(target).torch
    younger = younger_operators(path, torch)
    if torch == UNKNOWN:
        print(
            f"{path.name}: which torch Triton {target} carries isn't known, so its operators "
            "can't be checked; choose the release before or after it"
        )
    elif younger:
        listed = ", ".join(f"{name} (torch {since})" for name, since in younger.items())
        print(
            f"{path.name}: Triton {target} carries torch {torch}, which lacks {listed}; it may "
            "not load: use ONNX there, or a newer release"
        )
    else:
        print(f"{path.name}: Triton {target} carries torch {torch}, which has all its operators")
