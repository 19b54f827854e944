import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

import nin.training.data
from nin.errors import InputError
from nin.paths import DATA
from nin.training.data import load

SHIPPED = DATA / "fashion-mnist"
IMAGES = "t10k-images-idx3-ubyte"


def test_reads_the_shipped_test_images() -> None:
    images, labels = load("test")
    assert images.shape == (10_000, 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [1000] * 10
    assert labels[:8].tolist() == [9, 2, 1, 1, 6, 1, 4, 6]


def test_reads_plain_files_and_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in SHIPPED.glob("*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    expected, _ = load("test")
    np.testing.assert_array_equal(load("test", tmp_path)[0], expected)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path))
    monkeypatch.setattr(nin.training.data, "DATA", tmp_path / "nowhere")
    monkeypatch.setattr(nin.training.data, "DEBIAN", tmp_path / "nowhere")
    np.testing.assert_array_equal(load("test")[0], expected)


def test_an_argument_comes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "nowhere"))
    assert len(load("test", SHIPPED)[0]) == 10_000
    with pytest.raises(InputError, match="no data folder at .*nowhere"):
        load("test")


def test_finds_debians_files_and_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nin.training.data, "DATA", tmp_path / "data")
    monkeypatch.setattr(nin.training.data, "DEBIAN", SHIPPED)
    assert len(load("test")[0]) == 10_000
    monkeypatch.setattr(nin.training.data, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"no {IMAGES}.*dataset-fashion-mnist"):
        load("test")
    shutil.copytree(SHIPPED, tmp_path / "data" / "FashionMNIST" / "raw")
    assert len(load("test")[0]) == 10_000


def test_refuses_a_file_with_another_content(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    content = bytearray(gzip.decompress((SHIPPED / f"{IMAGES}.gz").read_bytes()))
    content[-1] ^= 1
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"isn't Fashion-MNIST's: .* SHA-256 .* expected 5b4141f0"):
        load("test", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b"])
def test_refuses_a_file_that_is_no_gzip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"can't read .*|isn't Fashion-MNIST's"):
        load("test", tmp_path)


def test_refuses_a_truncated_gzip(tmp_path: Path) -> None:
    whole = (SHIPPED / f"{IMAGES}.gz").read_bytes()
    (tmp_path / f"{IMAGES}.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="can't read .*fetch the file again"):
        load("test", tmp_path)
