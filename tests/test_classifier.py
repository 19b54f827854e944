import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nin.classifier import Classifier, preprocess
from nin.model import NiN


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
        logits, probabilities = Classifier(network)(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=0, atol=1e-12)


def test_folds_every_pixel_of_the_first_convolution(pixels: NDArray[np.uint8]) -> None:
    """The stem alone, corners and edges included, before pooling can hide anything."""
    torch.manual_seed(0)
    network = NiN().double().eval()
    stem = Classifier(network).stem
    images = torch.tensor(pixels[:8])
    padded = F.pad(images[:, None].double(), (1, 1, 1, 1), mode="replicate")
    with torch.inference_mode():
        found = F.pixel_shuffle(stem(padded), 2)
        expected = network[0][0](preprocess(images, torch.float64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_keeps_the_mode_of_the_network() -> None:
    assert Classifier(NiN().train()).training
    assert not Classifier(NiN().eval()).rest.training


def test_does_not_change_the_network() -> None:
    network = NiN().eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    Classifier(network)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
