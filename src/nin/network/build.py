"""Builds what a model folder names, fills in the weights, and checks that it is a classifier."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nin.contract import CONTRACT_FILE, Contract, Graph, load_contract
from nin.errors import CheckError, InputError, first_line
from nin.network.classifier import Classifier
from nin.network.weights import load_weights

_PROBES = 3  # images: enough to see one depend on another

# By how much an answer may change with the batch, relative to the largest logit: rounding.
_TOLERANCE = 1e-3

# The same in float64 between two ways to compute it.
_FLOAT64_TOLERANCE = 1e-10


@dataclass(frozen=True)
class TrainedModel:
    """A model folder, built: the network in evaluation mode, float32 on the CPU."""

    contract: Contract
    network: nn.Module
    weights_sha256: str

    def module(self, graph: Graph) -> nn.Module:
        """What computes `graph`: the network, or the classifier made from it.

        Raises InputError where the folder's own classifier can't be built, CheckError where it
        computes something else than the generic one.
        """
        if graph.name == self.contract.network.name:
            return self.network
        own = self.contract.pixels.classifier
        if own is None:
            return Classifier(self.network, self.contract).eval()
        make = import_object(self.contract.folder, own, "pixels.classifier")

        def build(network: nn.Module) -> nn.Module:
            return _call(self.contract, "pixels.classifier", own, make, network).eval()

        exact = deepcopy(self.network).double()
        check_classifier(build(exact), Classifier(exact, self.contract).double().eval(), graph)
        return build(self.network)


def load_model(folder: Path, weights: Path | None = None) -> TrainedModel:
    """Reads a model folder, builds its network and loads its weights.

    A model folder is code: what it names is imported and run.

    Args:
        weights: instead of those that the contract names.

    Raises:
        InputError: the contract, the network or the weights can't be used, or the network isn't
            a classifier of the contract's images.
    """
    contract = load_contract(folder)
    path = weights or contract.network.weights
    network = build_network(contract)
    for line in load_weights(network, path):
        print(line, file=sys.stderr)
    check_network(network, contract)
    return TrainedModel(contract, network, sha256(path.read_bytes()).hexdigest())


def build_network(contract: Contract) -> nn.Module:
    """The network as its class makes it, in evaluation mode, with weights of no meaning."""
    spec = contract.network
    make = import_object(contract.folder, spec.build, "network.build")
    network = _call(contract, "network.build", spec.build, make, **spec.arguments).eval()
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        # nn.LazyLinear and its kind get their shapes from the first batch
        image = torch.zeros(1, *contract.network_graph.input.shape)
        where = _place(contract.folder, "network.build", spec.build)
        with torch.no_grad():
            _logits(network, image, contract, where)
    return network


def import_object(folder: Path, name: str, key: str) -> Callable[..., Any]:
    """What a key of a folder's contract names, as `resolve`. Raises InputError."""
    return resolve(folder, name, _place(folder, key, name))


def _place(folder: Path, key: str, name: str) -> str:
    """Where the contract names it, for errors to begin with."""
    return f"{folder / CONTRACT_FILE}: {key} = {name!r}"


def resolve(folder: Path, name: str, context: str) -> Callable[..., Any]:
    """What FILE.py:NAME, relative to the folder, or MODULE:NAME names.

    Raises InputError that begins with the context.
    """
    where, _, attributes = name.partition(":")
    try:
        with _importable(folder):
            is_file = where.endswith(".py")
            value: Any = _run_file(folder / where) if is_file else importlib.import_module(where)
    except FileNotFoundError as error:
        raise InputError(f"{context}: there is no file {error.filename}") from error
    except (Exception, SystemExit) as error:  # it is the user's code
        raise InputError(f"{context} can't be imported: {_reason(error)}") from error
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            raise InputError(f"{context}: {where} has no {attribute}")
        value = getattr(value, attribute)
    if not callable(value):
        raise InputError(f"{context} is {value!r}, expected a class or a function")
    return value  # type: ignore[no-any-return]


def check_network(network: nn.Module, contract: Contract) -> None:
    """Raises InputError unless each image has its own logits, finite and always the same."""
    where = _place(contract.folder, "network.build", contract.network.build)
    graph = contract.network_graph
    random = torch.Generator().manual_seed(0)
    images = torch.rand(_PROBES, *graph.input.shape, generator=random)
    with torch.inference_mode():
        logits, again = (_logits(network, images, contract, where) for _ in range(2))
        size = float(logits.abs().max())
        if float((again - logits).abs().max()) > _TOLERANCE * size:
            raise InputError(
                f"{where} answers differently when it is asked again: is there dropout in its "
                "forward()? Use nn.Dropout, which evaluation mode switches off"
            )
        alone = torch.cat([_logits(network, image[None], contract, where) for image in images])
    if float((alone - logits).abs().max()) > _TOLERANCE * size:
        raise InputError(
            f"{where} answers an image differently alone than in a batch: its outputs must not "
            "depend on the other images; use the running statistics of batch norm"
        )
    _check_float64(network, images[:1], where)


def _check_float64(network: nn.Module, images: Tensor, where: str) -> None:
    """The reference is the network in float64: it must not insist on float32 inside."""
    exact = deepcopy(network).double()
    try:
        with torch.inference_mode():
            exact(images.double())
    except Exception as error:  # it is the user's code
        raise InputError(
            f"{where} can't be run in float64, which the gate's reference is: {_reason(error)}; "
            "in its forward() don't convert to float32, but to the dtype of its weights"
        ) from error


def check_classifier(own: nn.Module, naive: nn.Module, graph: Graph) -> None:
    """Raises CheckError unless a folder's own classifier computes what the generic one does.

    Args:
        own, naive: both in float64, so that nothing but rounding may differ.

    Raises:
        InputError: the folder's own isn't made for these pixels, or has other outputs.
    """
    where = f"{graph.name}: the folder's own classifier"
    random = torch.Generator().manual_seed(0)
    shape = (_PROBES, *graph.input.shape)
    pixels = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    with torch.inference_mode():
        expected = naive(pixels)
        try:
            found = own(pixels)
        except Exception as error:  # it is the user's code
            raise InputError(f"{where} doesn't take pixels {shape}: {_reason(error)}") from error
    form, right_form = (_form(outputs) for outputs in (found, expected))
    if form != right_form:
        raise InputError(f"{where} gives {form}, expected logits and probabilities, {right_form}")
    for tensor, values, right in zip(graph.outputs, found, expected, strict=True):
        off = float((values - right).abs().max())
        if not off <= _FLOAT64_TOLERANCE * float(right.abs().max()):
            raise CheckError(
                f"{where}: its {tensor.name} are off by {off:.3g} in float64 from scaling, "
                "normalising, resizing and the network; mend it, or leave out pixels.classifier"
            )


def _form(outputs: Any) -> str:
    """Types and shapes of what a module gives."""
    if isinstance(outputs, tuple):
        return f"({', '.join(map(_form, outputs))})"
    kind = type(outputs).__name__
    return f"{kind} {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else kind


def _logits(network: nn.Module, images: Tensor, contract: Contract, where: str) -> Tensor:
    """What the network gives. Raises InputError unless these are logits of the classes."""
    count, classes = len(images), len(contract.labels)
    try:
        logits = network(images)
    except Exception as error:  # it is the user's code
        shape = f"({count}, {', '.join(map(str, images.shape[1:]))})"
        raise InputError(f"{where} doesn't take images {shape}: {_reason(error)}") from error
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{where} returns a {type(logits).__name__}, expected a tensor of logits "
            f"(N, {classes}); wrap it in a module that returns them alone"
        )
    if logits.ndim != 2 or len(logits) != count:
        raise InputError(
            f"{where} makes {tuple(logits.shape)} of {count} image{'s' * (count > 1)}, "
            f"expected logits ({count}, {classes})"
        )
    if logits.shape[1] != classes:
        raise InputError(
            f"{where} has {logits.shape[1]} outputs, the labels file {classes} lines; "
            "it needs one label for each output"
        )
    if logits.dtype != torch.float32:
        raise InputError(f"{where} returns {logits.dtype}, expected torch.float32")
    if not logits.isfinite().all():
        raise InputError(f"{where} gives NaN or infinity for an image of noise; check the weights")
    return logits


def _call(
    contract: Contract, key: str, name: str, make: Callable[..., Any], *args: Any, **options: Any
) -> nn.Module:
    context = _place(contract.folder, key, name)
    return make_module(contract.folder, context, make, *args, **options)


def make_module(
    folder: Path, context: str, make: Callable[..., Any], *args: Any, **options: Any
) -> nn.Module:
    """Raises InputError that begins with the context where what was made isn't a module."""
    try:
        with _importable(folder):
            module = make(*args, **options)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise InputError(f"{context} can't be built: {_reason(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{context} gives a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _run_file(path: Path) -> ModuleType:
    """Imports a file under a name of its own, so that folders may have files of the same name."""
    path = path.resolve(strict=True)
    name = f"nin_model_{sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # so that its classes can be found by name
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the model's code import its neighbours, and packages of the current folder."""
    before = sys.path.copy()
    sys.path[:0] = [str(folder.resolve()), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
