"""A model's samples: IDX files, and image files in folders."""

import gzip
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nin.contract import Contract, Samples
from nin.errors import InputError
from nin.images import encode_idx, encode_png
from nin.samples import open_samples

Pixels = NDArray[np.uint8]


def in_folder(contract: Contract, folder: Path, kind: str) -> Contract:
    return replace(contract, samples=Samples(kind, folder))  # type: ignore[arg-type]


def rgb(contract: Contract, folder: Path, kind: str = "folder") -> Contract:
    """The contract with RGB images, cropped."""
    image = replace(contract.image, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    files = replace(contract.files, mode="rgb", resize="crop", shorter_side=30)
    return replace(in_folder(contract, folder, kind), image=image, files=files)


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# --- IDX ---


def write_pair(folder: Path, prefix: str, images: Pixels, labels: Pixels | None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{prefix}images-idx{images.ndim}-ubyte").write_bytes(encode_idx(images))
    if labels is not None:
        path = folder / f"{prefix}labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(encode_idx(labels)))


def test_the_built_in_models_are_the_test_images(
    contract: Contract, pixels: Pixels, labels: Pixels
) -> None:
    samples = open_samples(contract)
    assert len(samples) == 10_000
    assert samples.names[7] == "t10k-images-idx3-ubyte.gz[7]"
    np.testing.assert_array_equal(samples.pixels([3, 0]), pixels[[3, 0]])
    np.testing.assert_array_equal(samples.classes, labels)
    assert samples.classes is not None
    assert samples.classes.dtype == np.int64


def test_test_images_come_before_training_images(contract: Contract, tmp_path: Path) -> None:
    images = noise(5, 28, 28)
    write_pair(tmp_path, "train-", 255 - images, np.arange(5, dtype=np.uint8))
    contract = in_folder(contract, tmp_path, "idx")
    np.testing.assert_array_equal(open_samples(contract).pixels(range(5)), 255 - images)
    write_pair(tmp_path, "t10k-", images, np.arange(5, 10, dtype=np.uint8))
    samples = open_samples(contract)
    np.testing.assert_array_equal(samples.pixels(range(5)), images)
    np.testing.assert_array_equal(samples.classes, range(5, 10))


def test_rgb_without_labels_from_the_folder_that_is_named(
    contract: Contract, tmp_path: Path
) -> None:
    images = noise(3, 28, 28, 3)
    write_pair(tmp_path, "", images, None)
    samples = open_samples(rgb(contract, tmp_path / "nowhere", "idx"), tmp_path)
    assert samples.classes is None
    np.testing.assert_array_equal(samples.pixels([2]), images[2:])
    assert samples.pixels([]).shape == (0, 28, 28, 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (noise(2, 28, 27), None, r"uint8 \(2, 28, 27\), expected images, uint8 \(count, 28, 28\)"),
        (noise(2, 28, 28, 3), None, r"is an IDX file of uint8 \(2, 28, 28, 3\), expected images"),
        (noise(0, 28, 28), None, "holds no images"),
        (noise(2, 28, 28), [1, 2, 3], "has 3 labels, the images beside it are 2"),
        (noise(2, 28, 28), [1, 10], "class 10 is unknown, fashion_mnist has the 10 classes 0 to 9"),
    ],
)
def test_idx_files_that_do_not_fit(
    contract: Contract, tmp_path: Path, images: Pixels, labels: list[int] | None, message: str
) -> None:
    write_pair(tmp_path, "t10k-", images, None if labels is None else np.array(labels, np.uint8))
    with pytest.raises(InputError, match=message):
        open_samples(in_folder(contract, tmp_path, "idx"))


@pytest.mark.parametrize("shape", [(2, 28, 28), (2**32 - 1, 65535, 65535), (1, 1)])
def test_a_file_is_unpacked_only_as_far_as_it_promises(
    contract: Contract, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header + bytes(100 << 20)))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"promises 2 images, .*it has more|expected images"):
        open_samples(in_folder(contract, tmp_path, "idx"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 << 20


def test_a_file_may_hold_less_than_it_promises(contract: Contract, tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + np.array([2**32 - 1, 28, 28], ">u4").tobytes()
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(50)))
    with pytest.raises(InputError, match="promises 4294967295 images, .*it has 66 bytes"):
        open_samples(in_folder(contract, tmp_path, "idx"))


def test_several_files_of_images_are_one_too_many(contract: Contract, tmp_path: Path) -> None:
    for prefix in ("a-", "b-"):
        write_pair(tmp_path, prefix, noise(1, 28, 28), None)
    with pytest.raises(InputError, match="a-images-idx3-ubyte, b-images-idx3-ubyte; keep"):
        open_samples(in_folder(contract, tmp_path, "idx"))


# --- folders ---


def write_images(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(noise(28, 28, seed=seed)))


def test_the_first_few_are_of_many_classes(contract: Contract, tmp_path: Path) -> None:
    write_images(tmp_path, "0/a.png", "0/b.png", "0/c.png", "2/d.png", "9/e.png", "9/f.png")
    (tmp_path / ".hidden").touch()
    samples = open_samples(in_folder(contract, tmp_path, "folder"))
    assert list(samples.names) == ["0/a.png", "2/d.png", "9/e.png", "0/b.png", "9/f.png", "0/c.png"]
    np.testing.assert_array_equal(samples.classes, [0, 2, 9, 0, 9, 0])
    np.testing.assert_array_equal(samples.pixels(np.array([3])), noise(1, 28, 28, seed=1))


def test_loose_files_have_no_classes(contract: Contract, tmp_path: Path) -> None:
    write_images(tmp_path, "b.png", "a.png", "图 片.png")
    samples = open_samples(in_folder(contract, tmp_path, "folder"))
    assert list(samples.names) == ["a.png", "b.png", "图 片.png"]
    assert samples.classes is None
    expected = np.stack([noise(28, 28, seed=seed) for seed in (1, 0, 2)])
    np.testing.assert_array_equal(samples.pixels(range(3)), expected)


def test_files_are_decoded_as_the_contract_says(contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "wide.png").write_bytes(encode_png(noise(30, 90, 3)))
    samples = open_samples(rgb(contract, tmp_path))
    np.testing.assert_array_equal(samples.pixels([0])[0], noise(30, 90, 3)[1:29, 31:59])


def test_files_are_decoded_only_when_asked_for(contract: Contract, tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:100])
    samples = open_samples(in_folder(contract, tmp_path, "folder"))
    assert samples.pixels([0]).any()
    with pytest.raises(InputError, match=r"b\.png can't be decoded: not a whole PNG or JPEG file"):
        samples.pixels([0, 1])


@pytest.mark.parametrize("kind", ["folder", "idx"])
def test_nothing_there(contract: Contract, tmp_path: Path, kind: str) -> None:
    contract = in_folder(contract, tmp_path, kind)
    with pytest.raises(InputError, match=f"{tmp_path} holds no samples, expected"):
        open_samples(contract)
    with pytest.raises(InputError, match="no folder of samples at .*nowhere: nothing is there"):
        open_samples(contract, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no folder of samples at .*file: a file is there"):
        open_samples(contract, tmp_path / "file")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0/a.png", "b.png"], r"b\.png lies beside folders of classes"),
        (["10/a.png"], "10: class 10 is unknown, fashion_mnist has the 10 classes 0 to 9"),
        (["cats/a.png"], "cats isn't named for a class; expected 0 to 9"),
        (["01/a.png"], "01 should be named 1"),
        (["1/more/a.png"], "more is a folder within a class's"),
    ],
)
def test_folders_that_do_not_fit(
    contract: Contract, tmp_path: Path, names: list[str], message: str
) -> None:
    write_images(tmp_path, *names)
    with pytest.raises(InputError, match=message):
        open_samples(in_folder(contract, tmp_path, "folder"))


@pytest.mark.parametrize("content", [b"", b"text", b"GIF89a"])
@pytest.mark.parametrize("name", ["README.png", "3/notes"])
def test_a_file_that_is_no_image_is_named(
    contract: Contract, tmp_path: Path, name: str, content: bytes
) -> None:
    write_images(tmp_path, f"{name}.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is no PNG or JPEG file; move it out"):
        open_samples(in_folder(contract, tmp_path, "folder"))
