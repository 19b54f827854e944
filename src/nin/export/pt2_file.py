"""Writes a graph as a .pt2 package: machine code by AOTInductor, for C++ without TorchScript.

A package holds one library for each of a few batch sizes: with a batch of any size, torch 2.14's
AOTInductor computes wrong outputs for some quantised networks without an error, and slower ones.
"""

import io
import logging
import os
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from nin.artifact.instruction_sets import InstructionSet, best_instruction_set
from nin.artifact.pt2_package import Package, entry_point
from nin.contract import BATCH, Graph, Outputs, Run
from nin.errors import CheckError, InputError, first_line
from nin.export.int8_layers import MOST_CODE, Constant, Layer, layer_faults
from nin.reference.quantised import TIE

# Any number of images is run in parts of these sizes, the largest first.
BATCH_SIZES = (1, 4, 16)

_aten, _quantized = torch.ops.aten, torch.ops.quantized_decomposed
_WEIGHTED = (_aten.conv1d, _aten.conv2d, _aten.linear)  # what the quantizer takes, with its weights

# torchao's least step of 2**-12 is more than one of 7 bits of many weights: it cost NiN 0.1 point.
_LEAST_STEP = 1e-12

# What the loader needs of the files that AOTInductor writes.
_LIBRARY_FILES = (".wrapper.so", ".wrapper.json", ".wrapper_metadata.json")


@dataclass(frozen=True)
class Pt2Program:
    """A compiled graph."""

    instruction_set: str
    libraries: dict[int, dict[str, bytes]]  # by batch size the files, by the ends of their names
    quantised: ExportedProgram | None  # what an int8 program was compiled from


def compile_pt2(
    module: nn.Module, example: Tensor, graph: Graph, calibration: Tensor | None = None
) -> Pt2Program:
    """Compiles `module`, which must be in evaluation mode, for this machine's instruction set.

    Args:
        example: a batch of two; with one torch.export would take the batch for a constant.
        calibration: images (M, ...) as the graph takes them, to quantise by; None for float32.

    Raises:
        InputError: torch can't export or compile the module, it has nothing to quantise, or this
            machine has no C++ compiler, no torchao or no AVX2.
        CheckError: what was compiled doesn't compute in int8.
    """
    instructions = best_instruction_set()
    _check_compiler()
    quantised = None
    with torch.no_grad(), _quiet():
        if calibration is not None:
            quantised = _quantise(module, example, graph, calibration)
            module = quantised.module()
        libraries = {
            size: _compile(module, example[:1].repeat_interleave(size, dim=0), graph, instructions)
            for size in BATCH_SIZES
            if size <= graph.max_batch
        }
    if quantised and not all(map(_has_int8_kernels, libraries.values())):
        raise CheckError(f"{graph.name}: AOTInductor compiled the quantised graph to float32")
    return Pt2Program(instructions.name, libraries, quantised)


def write_pt2(program: Pt2Program, texts: dict[str, str]) -> bytes:
    """The package, with the texts as extra files like TorchScript's."""
    # only here: it imports the compiler, which takes as long as torch
    from torch.export.pt2_archive._package import package_pt2

    buffer = io.BytesIO()
    package = Package(texts, tuple(program.libraries), program.instruction_set)
    with tempfile.TemporaryDirectory() as folder:
        package_pt2(
            buffer,
            exported_programs=program.quantised,
            aoti_files={
                entry_point(size): _write_files(files, Path(folder) / entry_point(size))
                for size, files in program.libraries.items()
            },
            extra_files=package.to_texts(),
        )
    return buffer.getvalue()


def unfused_pt2(data: bytes, graph: Graph) -> tuple[Run, ...]:
    """The quantised graph of an int8 package in plain float32; then with its ties rounded up, down.

    As nin.runtimes.ort.unfused.
    """
    archive = _without_machine_code(data)
    return tuple(_run(_load(archive), graph, 1 + sign * TIE) for sign in (0, -1, 1))


def _run(module: GraphModule, graph: Graph, factor: float) -> Run:
    """Args: factor: of the scales by which activations are quantised."""
    for node in _calls(module, _quantized.quantize_per_tensor):
        node.update_arg(1, node.args[1] * factor)
    module.recompile()
    names = [tensor.name for tensor in graph.outputs]

    def run(batch: Any) -> Outputs:
        items = torch.tensor(batch)
        count = len(items)
        with torch.no_grad():
            # exported with a batch of two, it takes no single image
            outputs = module(items if count > 1 else torch.cat([items, items]))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: t[:count].numpy() for name, t in zip(names, outputs, strict=True)}

    return run


def weight_faults(data: bytes, module: nn.Module, example: Tensor, graph: Graph) -> list[str]:
    """What is wrong with the weights of an int8 package, held against `module`'s."""
    with _quiet():
        # without a configuration only batch norms are folded, as happened before quantising
        unconfigured = import_quantizer().X86InductorQuantizer()
        exact = _prepare(module, example, graph, unconfigured)
    quantised = _load(_without_machine_code(data))
    faults = layer_faults(_layers(quantised), _layers(exact))
    for node in _calls(quantised, _quantized.quantize_per_tensor):
        if any(reader.args[1:] != node.args[1:] for reader in node.users):
            faults.append(f"scales: {node.name} is written by one scale and read by another")
    return faults


def exporter_versions() -> dict[str, str]:
    return {name: version(name) for name in ("nin", "torch")}


def int8_exporter_versions() -> dict[str, str]:
    import_quantizer()
    return {**exporter_versions(), "torchao": version("torchao")}


def import_quantizer() -> Any:
    """torchao's quantizer for x86; to import it registers what AOTInductor needs to see int8.

    Raises InputError where torchao isn't installed.
    """
    try:
        with _quiet():
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    except ImportError as error:
        raise InputError(
            f"int8 .pt2 needs torchao ({first_line(error)}); install it by "
            "`pip install 'nin[export]'`"
        ) from error
    return x86_inductor_quantizer


# From a module to a quantised program


def _quantise(module: nn.Module, example: Tensor, graph: Graph, images: Tensor) -> ExportedProgram:
    """Static int8: activations per tensor, weights per channel.

    Weights get 7 bits, as in nin.export.int8_onnx. torchao's reduce_range takes a bit of the
    activations instead, to which the kernels don't clamp: images beyond the calibrated range came
    out otherwise than the graph says.
    """
    quantizer_of = import_quantizer()
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    default = quantizer_of.get_default_x86_inductor_quantization_config()
    observer = PerChannelMinMaxObserver.with_args(eps=_LEAST_STEP)
    weight = replace(
        default.weight,
        observer_or_fake_quant_ctr=observer,
        quant_min=-MOST_CODE,
        quant_max=MOST_CODE,
    )
    quantizer = quantizer_of.X86InductorQuantizer().set_global(replace(default, weight=weight))
    for average in (F.avg_pool2d, F.adaptive_avg_pool2d):
        # else, where a network ends with one, its logits would be rounded to int8
        quantizer.set_function_type_qconfig(average, None)
    observed = _prepare(module, example, graph, quantizer)
    for batch in torch.split(images, max(BATCH_SIZES)):
        # exported with a batch of two, it takes no single image
        observed(batch if len(batch) > 1 else torch.cat([batch, batch]))
    converted = convert_pt2e(observed)
    if all(layer.weight.codes is None for layer in _layers(converted)):
        raise InputError(
            f"{graph.name} has no convolution and no linear layer that can be quantised; "
            "export it in float32"
        )
    _remove_unused(converted)
    program = _export(converted, example, graph, dynamic=True)
    _remove_traces(program)
    return program


def _prepare(module: nn.Module, example: Tensor, graph: Graph, quantizer: Any) -> GraphModule:
    """With batch norms folded, and observers where the quantizer wants them."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    # strict, for the quantizer takes the two uses of one ReLU module for one otherwise: ResNet's
    program = _export(module, example, graph, dynamic=True, strict=True)
    try:
        prepared: GraphModule = prepare_pt2e(program.module(), quantizer)
    except Exception as error:  # of torchao
        raise InputError(
            f"{graph.name} can't be quantised by torchao: {first_line(error)}; "
            "export int8 to ONNX, or float32"
        ) from error
    return prepared


def _export(
    module: nn.Module,
    example: Tensor,
    graph: Graph,
    *,
    dynamic: bool = False,
    strict: bool = False,
) -> ExportedProgram:
    shapes = ({0: torch.export.Dim(BATCH)},) if dynamic else None
    try:
        return torch.export.export(module, (example.clone(),), dynamic_shapes=shapes, strict=strict)
    except Exception as error:  # of torch, or of the network's own code
        raise InputError(
            f"{graph.name} can't be exported by torch.export: {first_line(error)}; "
            "forward() may only use tensor operations; try TorchScript"
        ) from error


def _layers(module: GraphModule) -> list[Layer]:
    """The convolutions and linear layers with constant weights, in order, quantised or not."""
    layers = []
    for node in _calls(module, *_WEIGHTED):
        weight, bias = (_constant(module, argument) for argument in (*node.args, None)[1:3])
        if weight is not None:
            layers.append(Layer(node.name, weight, 0, bias))
    return layers


def _constant(module: GraphModule, argument: Any) -> Constant | None:
    """What a node's argument is, where that is in the file."""
    if not isinstance(argument, Node):
        return None
    if argument.op == "get_attr":
        return Constant(_attribute(module, argument).numpy())
    if argument.target != _quantized.dequantize_per_channel.default:
        return None
    codes, steps, zeros = (_attribute(module, source) for source in argument.args[:3])
    shape = [-1, *[1] * (codes.ndim - 1)]
    step = steps.float().reshape(shape)
    values = (codes.float() - zeros.reshape(shape)) * step
    return Constant(values.numpy(), codes.numpy(), step.numpy())


def _attribute(module: GraphModule, node: Any) -> Tensor:
    value: Tensor = attrgetter(node.target)(module)
    return value.detach()


def _calls(module: GraphModule, *operators: Any) -> list[Any]:
    """The nodes that call one of these operators, in whichever of its forms."""
    nodes = module.graph.nodes
    return [node for node in nodes if getattr(node.target, "overloadpacket", None) in operators]


def _remove_unused(module: GraphModule) -> None:
    """Removes the float weights that the quantised ones were made from."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def _remove_traces(program: ExportedProgram) -> None:
    """Removes notes on where each node comes from: they hold paths of this machine."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)


# From a program to machine code


def _check_compiler() -> None:
    from torch._inductor import config

    _, compiler = config.cpp.cxx
    if shutil.which(compiler.split()[0]) is None:
        raise InputError(
            f"no C++ compiler {compiler}, which a .pt2 is compiled by; install g++ (Debian: "
            "apt-get install g++), or name another one by CXX"
        )


def _compile(
    module: nn.Module, example: Tensor, graph: Graph, instructions: InstructionSet
) -> dict[str, bytes]:
    """The files for batches of the example's size."""
    program = _export(module, example, graph)
    options = {
        "aot_inductor.package": True,
        "freezing": True,  # without it int8 runs in float32, and float32 with unpacked weights
        "cpp.dynamic_threads": True,  # as many as whoever runs it has
        "cpp.march": instructions.march,
        "cpp.simdlen": instructions.vector_bits,
        # what only calls the kernels need not be fast, but compiled fast
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.enable_frame_pointer": False,
    }
    try:
        paths = torch._inductor.aot_compile(program.module(), (example,), options=options)
    except Exception as error:  # of torch, or of the compiler
        raise InputError(
            f"{graph.name} can't be compiled by AOTInductor: {first_line(error)}; "
            "try ONNX or TorchScript"
        ) from error
    assert isinstance(paths, list)  # as of a package
    return _read_files([Path(str(path)) for path in paths])


def _read_files(paths: list[Path]) -> dict[str, bytes]:
    machine = sorted(
        {str(paths[0].parent), str(Path(torch.__file__).parents[1]), sysconfig.get_path("data")},
        key=len,
        reverse=True,
    )
    return {
        end: _on_cpu_half(_without_paths(path.read_bytes(), machine))
        for path in paths
        for end in _LIBRARY_FILES
        if path.name.endswith(end)
    }


def _without_paths(data: bytes, folders: list[str]) -> bytes:
    """Blots out where the sources lay, which stands in error messages, by as many slashes."""
    for folder in folders:
        data = data.replace(os.fsencode(folder), b"/" * len(os.fsencode(folder)))
    return data


def _on_cpu_half(library: bytes) -> bytes:
    """Has a library ask for a part of LibTorch that every program has, instead of all of it.

    libtorch.so brings the CUDA half along, which C++ programs neither link nor find.
    """
    return library.replace(b"\0libtorch.so\0", b"\0libc10.so\0\0\0")


def _has_int8_kernels(files: dict[str, bytes]) -> bool:
    library = files[".wrapper.so"]
    return b"qconv_pointwise" in library or b"qlinear_pointwise" in library


def _write_files(files: dict[str, bytes], folder: Path) -> list[Any]:
    """Under names that are the same on every machine."""
    folder.mkdir()
    paths = []
    for end, data in files.items():
        path = folder / f"{folder.name}{end}"
        path.write_bytes(data)
        paths.append(str(path))
    return paths


# Reading


def _load(archive: bytes) -> GraphModule:
    """The quantised graph. Raises InputError where torchao isn't installed."""
    import_quantizer()  # registers the operators
    return torch.export.load(io.BytesIO(archive)).module()


def _without_machine_code(data: bytes) -> bytes:
    """The same archive with its exported program alone, which torch.export.load can read."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name in reader.get_all_records():
        if not name.startswith(("data/aotinductor/", "extra/", ".data/")):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what torch and torchao say of their own code from stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
