"""A live server of several models, none of them the built-in one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from nin.client import AsyncClient, Client, Prediction
from nin.contract import Contract, load_contract
from nin.decoder import decode
from nin.errors import InputError, ServerError
from nin.serve.repository import publish, versions
from nin.serve.server import PORTS, Server, serve
from tests.conftest import Script


@pytest.fixture(scope="module")
def photographs(resnet18: Path) -> Contract:
    """RGB, cropped, not square, 1,000 classes."""
    return load_contract(resnet18)


@pytest.fixture(scope="module")
def shared(
    lenet: Contract,
    lenet_artifacts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A repository of the small grey model; the other comes while the server runs."""
    repository = tmp_path_factory.mktemp("shared") / "model_repository"
    publish(lenet, lenet_artifacts, repository)
    return repository


@pytest.fixture(scope="module")
def server(embedded: None, shared: Path) -> Iterator[Server]:
    with serve(shared, ports=dict.fromkeys(PORTS, 0)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.http) as client:
        yield client


def files_of(contract: Contract, count: int) -> list[bytes]:
    paths = sorted(p for p in contract.samples.path.rglob("*.*"))
    return [path.read_bytes() for path in paths[:count]]


def decoded(contract: Contract, files: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([decode(file, **contract.files.describe()) for file in files])


def test_a_model_is_added_to_a_running_server(
    script: Script,
    client: Client,
    photographs: Contract,
    resnet18_artifacts: Path,
    shared: Path,
) -> None:
    """With its decoder and its ensemble; it is the first of its own versions."""
    published = script(
        "export/to_triton.py", "--model", photographs.folder, "--artifacts", resnet18_artifacts,
        "--repository", shared, "--unproven", "--load", client.url,
    )  # fmt: skip
    assert published.code == 0, published.err
    for model in photographs.models:
        assert client.metadata(model.name)["versions"] == ["1"]
    listed = script("export/to_triton.py", "--repository", shared, "--list").out
    assert all(model.name in listed for model in photographs.published)
    assert len(versions(shared)) == 8


@pytest.mark.parametrize("name", ["small", "imagenet"])
def test_the_server_decodes_as_the_package_does(
    client: Client, lenet: Contract, photographs: Contract, name: str
) -> None:
    contract = {"small": lenet, "imagenet": photographs}[name]
    files = files_of(contract, 4)
    pixels = decoded(contract, files)
    inputs = {"encoded_image": np.array([[file] for file in files], object)}
    found = client.infer(contract.decoder.name, inputs)["pixels"]
    np.testing.assert_array_equal(found, pixels)
    answers = client.infer(contract.ensemble.name, inputs)
    for model in (contract.name, f"{contract.name}_torchscript"):
        direct = client.infer(model, {"pixels": pixels})
        for output, values in direct.items():
            np.testing.assert_allclose(answers[output], values, rtol=0, atol=1e-4)


def test_photographs_are_cropped_as_torchvision_does(client: Client, photographs: Contract) -> None:
    rules = photographs.files
    steps = Compose(
        [
            Resize(rules.shorter_side, InterpolationMode(rules.filter)),
            CenterCrop((rules.height, rules.width)),
        ]
    )
    paths = sorted(photographs.samples.path.rglob("*.*"))[:4]
    expected = [np.asarray(steps(Image.open(path).convert("RGB"))) for path in paths]
    inputs = {"encoded_image": np.array([[path.read_bytes()] for path in paths], object)}
    found = client.infer(photographs.decoder.name, inputs)["pixels"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["small", "imagenet"])
def test_labels_are_the_models_own_whatever_they_are(
    client: Client, lenet: Contract, photographs: Contract, name: str
) -> None:
    """With commas, quotes, slashes, colons, in other scripts; a thousand of them."""
    contract = {"small": lenet, "imagenet": photographs}[name]
    pixels = decoded(contract, files_of(contract, 3))
    classes = len(contract.labels)
    for predictions in client.classify(pixels, model=name, top=classes):
        assert sorted(p.index for p in predictions) == list(range(classes))
        assert all(p.label == contract.labels[p.index] for p in predictions)


def test_which_model_is_meant_has_to_be_said(client: Client) -> None:
    with pytest.raises(InputError, match="imagenet.*small"):
        client.classify(np.zeros((1, 16, 20), np.uint8))


@pytest.mark.parametrize("name", ["small_torchscript", "imagenet_torchscript"])
def test_files_for_a_model_without_an_ensemble(
    client: Client, lenet: Contract, photographs: Contract, name: str
) -> None:
    """Its configuration names the decoder that makes its pixels."""
    contract = lenet if name.startswith("small") else photographs
    files = files_of(contract, 7)  # more than one batch holds
    found = client.classify_files(files, model=name)
    assert found == client.classify(decoded(contract, files), model=name)
    assert asyncio.run(_ask_at_once(client.url, files, name)) == found
    assert client.classify_files([], model=name) == []


async def _ask_at_once(url: str, files: list[bytes], name: str) -> list[list[Prediction]]:
    async with AsyncClient(url) as client:
        return await client.classify_files(files, model=name)


def test_an_unknown_model_is_named_as_it_was_asked_for(client: Client) -> None:
    with pytest.raises(ServerError, match=r"'nosuch'"):
        client.classify_files([b"x"], model="nosuch")
