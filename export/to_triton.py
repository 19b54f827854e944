"""Publishes the exports as the next version of every model in the Triton model repository.

python export/to_triton.py                          # artifacts/ to model_repository/
python export/to_triton.py --load 127.0.0.1:8000    # and a running server swaps to it
python export/to_triton.py --list
python export/to_triton.py --rollback --load 127.0.0.1:8000
"""

import argparse
from pathlib import Path

from nin.cli import parser, positive, run, short, table
from nin.client import Client
from nin.errors import CheckError
from nin.paths import ARTIFACTS, MODEL_REPOSITORY
from nin.triton.repository import PUBLISHED, prune, publish, rollback, versions


def main() -> None:
    args = parse_args()
    if args.list:
        show(args.repository)
        return
    repository = short(args.repository.resolve())
    server = Client(args.load, protocol="http") if args.load else None  # a mistake ends it here
    if args.rollback:
        before, version = rollback(args.repository)
        print(f"{repository}: version {version} is version {before} again")
    else:
        version = publish(args.artifacts, args.repository, version=args.version)
        print(f"{repository}: version {version} of {', '.join(m.name for m in PUBLISHED)}")
    if server:
        with server:
            for model in PUBLISHED:
                server.load(model.name)
        print(f"{args.load}: loaded")
    if args.keep is not None and (removed := prune(args.repository, args.keep)):
        print(f"{repository}: removed version {', '.join(map(str, removed))}")


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
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
        "--keep", type=positive, metavar="N", help="then remove all but the newest N versions"
    )
    options.add_argument(
        "--load",
        metavar="HOST:PORT",
        help="then let the server there (HTTP, model control mode explicit) load what is newest",
    )
    return options.parse_args()


def show(repository: Path) -> None:
    """Prints every version; raises CheckError if one isn't what was published."""
    found = versions(repository)
    rows = [
        (
            version.model,
            str(version.number),
            version.entry.weights_sha256[:12] if version.entry else "-",
            version.entry.sha256[:12] if version.entry else "CHANGED",
        )
        for version in found
    ]
    print(table(("model", "version", "weights", "SHA-256"), rows))
    if problems := [version.problem for version in found if version.problem]:
        raise CheckError("not what was published\n  " + "\n  ".join(problems))


if __name__ == "__main__":
    run(main)
