"""What torchvision says of the weights that it publishes: preprocessing and classes."""

from dataclasses import dataclass

import torchvision

_MODULE = "torchvision.models"


@dataclass(frozen=True)
class Published:
    """The default weights of one of torchvision's classifiers; nothing is fetched."""

    name: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int
    filter: str
    categories: tuple[str, ...]
    arguments: str  # without which the network isn't that of the weights, as in a table of TOML


# What torchvision passes on itself with weights: these expect another scale than its mean and std.
_ARGUMENTS = {
    "googlenet": "transform_input = true, aux_logits = false, init_weights = false",
    "inception_v3": "transform_input = true, init_weights = false",
}


def find_published(build: str) -> Published | None:
    """Of the network that MODULE:NAME names, if it is one of torchvision's classifiers."""
    module, _, name = build.partition(":")
    if module != _MODULE or name not in torchvision.models.list_models(torchvision.models):
        return None
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    return Published(
        name,
        size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        shorter_side=transforms.resize_size[0],
        filter=transforms.interpolation.value,
        categories=tuple(weights.meta["categories"]),
        arguments=_ARGUMENTS.get(name, ""),
    )


def unique(names: tuple[str, ...]) -> list[str]:
    """The names, those that came before with a number: crane, crane (2)."""
    numbered: list[str] = []
    taken = set(names)
    seen: set[str] = set()
    for name in names:
        label, number = name, 1
        while label in seen or (number > 1 and label in taken):
            number += 1
            label = f"{name} ({number})"
        seen.add(label)
        numbered.append(label)
    return numbered
