"""Publishes a model's exports as the next version of its models in a Triton model repository.

nin publish                              # the built-in model's, to model_repository/
nin publish --load 127.0.0.1:8000        # and a running server swaps to it
nin publish --model models/resnet18 --repository served --cores 8
nin publish --tune --latency-ms 50       # tries layouts, and writes the fastest within 50 ms
nin publish --openvino                   # int8 by OpenVINO too, where the server has that backend
nin publish --list
nin publish --rollback --load 127.0.0.1:8000
"""

import argparse
from dataclasses import replace
from pathlib import Path

from nin.artifact.manifest import read_manifest
from nin.bench.tuning import choose, try_layouts, tuning_table
from nin.client import Client
from nin.commands.options import ARTIFACTS_HELP, add_model_options, artifacts_of
from nin.contract import Contract, load_contract, openvino_model
from nin.errors import CheckError, InputError, ServerError
from nin.files import locked
from nin.gate.proof import prove
from nin.paths import MODEL_REPOSITORY
from nin.samples import open_samples
from nin.serve.configs import Layout, layout_for
from nin.serve.repository import UNPROVEN, model_names, prune, publish, rollback, versions
from nin.terminal import positive, short, table

LOAD_TIMEOUT_S = 300.0  # a server that is busy answering takes its time to load


def add_options(options: argparse.ArgumentParser) -> None:
    add_model_options(options)
    options.add_argument("--artifacts", type=Path, help=f"folder of the exports; {ARTIFACTS_HELP}")
    options.add_argument(
        "--repository",
        type=Path,
        default=MODEL_REPOSITORY,
        help="model repository; made if it doesn't exist, and may hold other models too",
    )
    action = options.add_mutually_exclusive_group()
    action.add_argument("--version", type=positive, help="its number; the next one if not given")
    action.add_argument(
        "--rollback", action="store_true", help="publish the version before the newest again"
    )
    action.add_argument("--list", action="store_true", help="show what is published and do nothing")
    options.add_argument(
        "--unproven", action="store_true", help="publish even what the gate hasn't let through"
    )
    options.add_argument(
        "--keep", type=positive, metavar="N", help="then remove all but the newest N versions"
    )
    options.add_argument(
        "--openvino",
        action="store_true",
        help="serve int8 by the openvino backend too, from now on; the embedded server needs the "
        "extra openvino for it",
    )
    options.add_argument(
        "--load",
        metavar="HOST:PORT",
        help="then let the server there (HTTP, model control mode explicit) load what is newest",
    )
    _add_layout_options(options)


def _add_layout_options(options: argparse.ArgumentParser) -> None:
    group = options.add_argument_group(
        "the server's machine",
        "Any of these writes the models' config.pbtxt anew. Without them those that are there\n"
        "stay, and new ones are for this machine: an instance per core with one thread each.",
    )
    group.add_argument("--cores", type=positive, metavar="N", help="how many it has")
    group.add_argument(
        "--instances", type=positive, metavar="N", help="of each model; the cores are shared out"
    )
    group.add_argument("--gpu", action="store_true", help="one instance of each model on the GPU")
    group.add_argument(
        "--tune", nargs="?", const="", metavar="MODEL",
        help="measure some layouts of this model, the classifier if not given, and write the best",
    )  # fmt: skip
    group.add_argument(
        "--latency-ms",
        type=positive,
        metavar="P95",
        help="--tune chooses only among layouts within it",
    )
    group.add_argument(
        "--clients", type=positive, default=16, metavar="N",
        help="requests in flight when --tune measures",
    )  # fmt: skip


def execute(args: argparse.Namespace) -> None:
    if args.list:
        show(args.repository)
        return
    contract = load_contract(args.model)
    contract = replace(contract, openvino=args.openvino or has_openvino(contract, args.repository))
    if args.openvino and not contract.calibration:
        raise InputError(f"--openvino serves int8, for which {args.model} has no [calibration]")
    layout = _layout(contract, args)
    repository = short(args.repository.resolve())
    server = Client(args.load, protocol="http", timeout_s=LOAD_TIMEOUT_S) if args.load else None
    before_load = ready_versions(server, contract) if server else {}  # no server there ends it here
    if args.rollback:
        older, version = rollback(contract, args.repository)
        print(f"{repository}: version {version} is version {older} again")
    else:
        proof, version = prove_and_publish(contract, args, layout)
        models = ", ".join(model.name for model in contract.published)
        print(f"{repository}: version {version} of {models}, proof: {proof}")
    if server:
        with server:
            load(server, contract, before_load, version, reconfigured=layout is not None)
        print(f"{args.load}: loaded version {version}")
    if args.keep is not None and (removed := prune(contract, args.repository, args.keep)):
        print(f"{repository}: removed version {', '.join(map(str, removed))}")


def has_openvino(contract: Contract, repository: Path) -> bool:
    """Whether the repository serves the model by OpenVINO: it goes on to do so."""
    name = openvino_model(contract.classifier_graph, "").name
    return name in (model_names(repository) if repository.is_dir() else [])


def _layout(contract: Contract, args: argparse.Namespace) -> Layout | None:
    by_hand = args.cores or args.instances or args.gpu
    if args.latency_ms and args.tune is None:
        raise InputError("--latency-ms is a bound for --tune; give both")
    if not by_hand and args.tune is None:
        return None
    if args.rollback:
        raise InputError("--rollback leaves the configurations; give --cores and the like without")
    if args.tune is not None:
        if by_hand:
            raise InputError("--tune measures; leave --cores, --instances and --gpu out")
        return tune(contract, args)
    if args.gpu and args.instances:
        raise InputError("--gpu is one instance of each model; leave --instances out")
    return layout_for(instances=args.instances, cores=args.cores, gpu=args.gpu)


def tune(contract: Contract, args: argparse.Namespace) -> Layout:
    """Prints what was tried; raises CheckError where nothing is within the bound."""
    models = {m.name: m for m in contract.published if m.graph.name == contract.name}
    name = args.tune or contract.name
    if name not in models:
        raise InputError(f"no classifier {name} is published; there are {', '.join(models)}")
    artifacts = artifacts_of(contract, args.artifacts)
    image = open_samples(contract, args.data_dir).pixels([0])
    tried = try_layouts(contract, models[name], artifacts, image=image, clients=args.clients)
    print(f"{name}, {args.clients} requests in flight:\n\n{tuning_table(tried)}\n", flush=True)
    return choose(tried, args.latency_ms, model=name, clients=args.clients)


def prove_and_publish(
    contract: Contract, args: argparse.Namespace, layout: Layout | None
) -> tuple[str, int]:
    """The proof and the number of the new version."""
    artifacts = artifacts_of(contract, args.artifacts)

    def published(proof: str) -> tuple[str, int]:
        return proof, publish(
            contract, artifacts, args.repository, version=args.version, proof=proof, layout=layout
        )

    if args.unproven:
        return published(UNPROVEN)
    read_manifest(artifacts)  # says what to do where there is none
    with locked(artifacts):  # so that no export changes what was proven
        return published(prove(contract, artifacts, weights=args.weights, data_dir=args.data_dir))


def ready_versions(server: Client, contract: Contract) -> dict[str, list[str]]:
    """The versions of every model of the contract that the server has ready."""
    ready: dict[str, list[str]] = {}
    for model in contract.models:
        try:
            ready[model.name] = server.metadata(model.name)["versions"]
        except ServerError:  # not loaded, or not known
            ready[model.name] = []
    return ready


def load(
    server: Client,
    contract: Contract,
    before: dict[str, list[str]],
    version: int,
    *,
    reconfigured: bool,
) -> None:
    """Lets the server load `version`, which has just been published.

    Args:
        before: the versions that were ready before it was published.
        reconfigured: the configurations of all models have changed.

    Raises:
        CheckError: the version isn't ready now, or one of that number was before: the server
            serves another repository.
    """
    published = [model.name for model in contract.published]
    for model in contract.models:  # the ensemble, which needs the others, comes last
        if model.name in published or reconfigured or not before[model.name]:
            server.load(model.name)
    after = ready_versions(server, contract)
    loaded = [name for name in published if str(version) in set(after[name]) - set(before[name])]
    if len(loaded) < len(published):
        serves = "; ".join(f"{name}: {', '.join(after[name]) or 'none'}" for name in published)
        raise CheckError(
            f"{server.url} seems to serve another repository: version {version} was published, "
            f"and not loaded there. Its versions are {serves}; "
            "give the --repository that it serves, or another --load"
        )


def show(repository: Path) -> None:
    """Prints every version; raises CheckError if one isn't what was published."""
    found = versions(repository)
    rows = [
        (
            version.model,
            str(version.number),
            version.entry.weights_sha256[:12] if version.entry else "-",
            version.entry.sha256[:12] if version.entry else "CHANGED",
            (version.entry.proof or UNPROVEN) if version.entry else "-",
        )
        for version in found
    ]
    print(table(("model", "version", "weights", "SHA-256", "proof"), rows))
    if problems := [version.problem for version in found if version.problem]:
        raise CheckError("not what was published\n  " + "\n  ".join(problems))
