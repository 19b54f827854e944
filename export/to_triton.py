"""Publishes the exports as the next version of every model in the Triton model repository.

python export/to_triton.py                          # artifacts/ to model_repository/
python export/to_triton.py --load 127.0.0.1:8000    # and a running server swaps to it
python export/to_triton.py --list
python export/to_triton.py --rollback --load 127.0.0.1:8000
"""

import argparse
from pathlib import Path

from nin.artifact import locked, read_manifest
from nin.cli import add_input_options, parser, positive, run, short, table
from nin.client import Client
from nin.errors import CheckError, ServerError
from nin.paths import ARTIFACTS, MODEL_REPOSITORY
from nin.proof import prove
from nin.triton.repository import PUBLISHED, UNPROVEN, prune, publish, rollback, versions


def main() -> None:
    args = parse_args()
    if args.list:
        show(args.repository)
        return
    repository = short(args.repository.resolve())
    server = Client(args.load, protocol="http") if args.load else None
    before_load = ready_versions(server) if server else {}  # no server there ends it here
    if args.rollback:
        older, version = rollback(args.repository)
        print(f"{repository}: version {version} is version {older} again")
    else:
        proof, version = prove_and_publish(args)
        models = ", ".join(m.name for m in PUBLISHED)
        print(f"{repository}: version {version} of {models}, proof: {proof}")
    if server:
        with server:
            load(server, before_load, version)
        print(f"{args.load}: loaded version {version}")
    if args.keep is not None and (removed := prune(args.repository, args.keep)):
        print(f"{repository}: removed version {', '.join(map(str, removed))}")


def prove_and_publish(args: argparse.Namespace) -> tuple[str, int]:
    """The proof and the number of the new version."""
    if args.unproven:
        return UNPROVEN, publish(args.artifacts, args.repository, version=args.version)
    read_manifest(args.artifacts)  # says what to do where there is none
    with locked(args.artifacts):  # so that no export changes what was proven
        proof = prove(args.artifacts, weights=args.weights, data_dir=args.data_dir)
        return proof, publish(args.artifacts, args.repository, version=args.version, proof=proof)


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
    add_input_options(options)
    options.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the exports")
    options.add_argument(
        "--repository",
        type=Path,
        default=MODEL_REPOSITORY,
        help="model repository; made from the checkout's if it doesn't exist",
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
        "--load",
        metavar="HOST:PORT",
        help="then let the server there (HTTP, model control mode explicit) load what is newest",
    )
    return options.parse_args()


def ready_versions(server: Client) -> dict[str, list[str]]:
    """The versions of every published model that the server has ready."""
    ready: dict[str, list[str]] = {}
    for model in PUBLISHED:
        try:
            ready[model.name] = server.metadata(model.name)["versions"]
        except ServerError:  # not loaded, or not known
            ready[model.name] = []
    return ready


def load(server: Client, before: dict[str, list[str]], version: int) -> None:
    """Lets the server load `version`, which has just been published.

    Args:
        before: the versions that were ready before it was published.

    Raises:
        CheckError: the version isn't ready now, or one of that number was before: the server
            serves another repository.
    """
    for model in PUBLISHED:
        server.load(model.name)
    after = ready_versions(server)
    loaded = [m for m, ready in after.items() if str(version) in set(ready) - set(before[m])]
    if len(loaded) < len(PUBLISHED):
        serves = "; ".join(f"{m}: {', '.join(r) or 'none'}" for m, r in after.items())
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


if __name__ == "__main__":
    run(main)
