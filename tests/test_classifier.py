"""Pixels to logits: the generic classifier and the built-in model's, against independent forms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nin.contract import Contract, Image, Pixels
from nin.network.build import import_object
from nin.network.classifier import Classifier, Preprocess
from nin.paths import NIN as FOLDER
from nin.training.network import NiN, images_of

Folded: Any = import_object(FOLDER, "network.py:Classifier", "pixels.classifier")

GREY = ((0.0,), (1.0,))
NORMALISED = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZES = (((20, 32), (20, 32)), ((7, 5), (14, 5)), ((9, 16), (31, 40)), ((1, 1), (3, 4)))


def shares(small: int, large: int) -> NDArray[np.float64]:
    """(large, small): what each pixel of a side, resized, takes of the old ones.

    Bilinear, between the centres of pixels; at the edges the outermost one alone.
    """
    centres = (np.arange(large) + 0.5) * small / large - 0.5
    distances = np.abs(np.clip(centres, 0, small - 1)[:, None] - np.arange(small))
    return np.asarray(np.maximum(0, 1 - distances))


def preprocessed(pixels: NDArray[np.uint8], image: Image) -> NDArray[np.float64]:
    """Resized first, then normalised: another order than the module's, and sums written out."""
    shape = (*pixels.shape[:3], image.channels)
    down, across = shares(shape[1], image.height), shares(shape[2], image.width)
    resized = np.einsum("yi,xj,nijc->ncyx", down, across, pixels.reshape(shape).astype(np.float64))
    mean, std = (np.array(values)[:, None, None] for values in (image.mean, image.std))
    return np.asarray((resized - 255 * mean) / (255 * std))


def changed(
    contract: Contract,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    scaling: tuple[tuple[float, ...], tuple[float, ...]],
) -> Contract:
    (h, w), (height, width) = sizes
    mean, std = scaling
    return replace(
        contract,
        image=Image(len(mean), height, width, mean, std),
        pixels=Pixels(h, w, "bilinear" if sizes[0] != sizes[1] else None, None),
    )


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("scaling", [GREY, ((0.3,), (0.5,)), NORMALISED])
def test_preprocesses_as_numpy_does(contract: Contract, sizes: Any, scaling: Any) -> None:
    own = changed(contract, sizes, scaling)
    random = np.random.default_rng(0)
    shape = own.classifier_graph.input.shape
    assert shape == (sizes[0] if len(scaling[0]) == 1 else (*sizes[0], 3))
    pixels = random.integers(0, 256, (4, *shape), np.uint8)
    expected = preprocessed(pixels, own.image)
    assert expected.shape == (4, *own.network_graph.input.shape)
    preprocess = Preprocess(own)
    in_float32 = preprocess(torch.tensor(pixels))
    assert in_float32.dtype == torch.float32
    np.testing.assert_allclose(in_float32, expected, rtol=0, atol=1e-5)
    exact = Preprocess(own).double()(torch.tensor(pixels))
    # mean and std are float32 in the artifact, as they are in every runtime
    np.testing.assert_allclose(exact, expected, rtol=0, atol=2e-7 if any(scaling[0]) else 1e-12)


def test_classifies_as_numpy_does(contract: Contract) -> None:
    """The logits of a linear network, and their softmax."""
    own = changed(contract, ((9, 16), (18, 16)), NORMALISED)
    torch.manual_seed(0)
    linear = nn.Linear(3 * 18 * 16, 5)
    network = nn.Sequential(nn.Flatten(), linear).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 16, 3), np.uint8)
    image = preprocessed(pixels, own.image).reshape(4, -1)
    weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
    expected = image @ weight.T + bias
    powers = np.exp(expected)
    with torch.inference_mode():
        logits, probabilities = Classifier(network, own).double()(torch.tensor(pixels))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    right = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, right, rtol=0, atol=1e-6)


# --- the built-in model's, with its folded stem ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["real", "noise", "extremes"])
def test_folded_stem_equals_the_naive_form(seed: int, kind: str, pixels: NDArray[np.uint8]) -> None:
    """Within 1e-12 in float64, for random weights; divide and resize are written out here."""
    torch.manual_seed(seed)
    network = NiN().double().eval()
    with torch.no_grad():  # weights large enough for every layer to say something
        for parameter in network.parameters():
            parameter.mul_(1.5)
    images = {
        "real": torch.tensor(pixels[4 * seed : 4 * seed + 4]),
        "noise": torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8),
        "extremes": torch.tensor([0, 255], dtype=torch.uint8)[torch.randint(0, 2, (4, 28, 28))],
    }[kind]
    image = F.interpolate(
        images[:, None].double() / 255, size=(224, 224), mode="bilinear", align_corners=False
    )
    with torch.inference_mode():
        expected = network(image)
        logits, probabilities = Folded(network)(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=0, atol=1e-12)


def test_folds_every_pixel_of_the_first_convolution(pixels: NDArray[np.uint8]) -> None:
    """The stem alone, corners and edges included, before pooling can hide anything."""
    torch.manual_seed(0)
    network = NiN().double().eval()
    stem = Folded(network).stem
    images = torch.tensor(pixels[:8])
    padded = F.pad(images[:, None].double(), (1, 1, 1, 1), mode="replicate")
    with torch.inference_mode():
        found = F.pixel_shuffle(stem(padded), 2)
        expected: Tensor = network[0][0](images_of(images, torch.float64))  # type: ignore[index]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_keeps_the_mode_of_the_network() -> None:
    assert Folded(NiN().train()).training
    assert not Folded(NiN().eval()).rest.training


def test_does_not_change_the_network() -> None:
    network = NiN().eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    Folded(network)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
