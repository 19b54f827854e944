"""Options that several commands share."""

import argparse
from pathlib import Path

from nin.contract import Contract
from nin.paths import ARTIFACTS, NIN


def add_model_options(options: argparse.ArgumentParser) -> None:
    """The options of every command that reads a model folder, its weights and its samples."""
    options.add_argument("--model", type=Path, default=NIN, help="the model's folder")
    options.add_argument("--weights", type=Path, help="instead of those that model.toml names")
    options.add_argument(
        "--data-dir", type=Path, help="folder of the samples, instead of model.toml's"
    )


def artifacts_of(contract: Contract, chosen: Path | None) -> Path:
    """Where the exports lie: the folder chosen, or the model's default."""
    if chosen is not None:
        return chosen
    built_in = contract.folder.resolve() == NIN.resolve()
    return ARTIFACTS if built_in else ARTIFACTS / contract.name


# What the help says of the default.
ARTIFACTS_HELP = "artifacts/ for the built-in model, artifacts/NAME for others, if not given"
