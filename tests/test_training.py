"""The parts of training: batches, optimizers, schedule, curves, precision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nin.errors import InputError
from nin.model import NiN
from nin.training.batches import Batches, split, window
from nin.training.curves import draw_curves
from nin.training.devices import find_device, find_precision
from nin.training.optimizers import Muon, make_optimizers, orthogonalise
from nin.training.recipes import BEST, BOOK, lr_factor


def numbered(count: int) -> torch.Tensor:
    """Images without two equal pixels in a row or column: any mix-up shows."""
    pixels = np.arange(count * 784).reshape(count, 28, 28) * 7919 % 251
    return torch.from_numpy(pixels.astype(np.uint8))


def test_holds_out_the_same_images_always() -> None:
    train, held_out = split(60_000)
    assert (len(train), len(held_out)) == (55_000, 5_000)
    assert len(torch.cat([train, held_out]).unique()) == 60_000
    assert torch.equal(held_out, split(60_000)[1])
    assert not torch.equal(held_out.sort().values, torch.arange(5_000))


def test_cuts_and_mirrors_like_numpy() -> None:
    pixels = numbered(3)
    corner = torch.tensor([[0, 3, 8], [1, 8, 0]])
    cut = window(pixels, corner, torch.tensor([False, True, True]), 20)
    images = pixels.numpy()
    assert np.array_equal(cut[0], images[0, 0:20, 1:21])
    assert np.array_equal(cut[1], images[1, 3:23, 8:28][:, ::-1])
    assert np.array_equal(cut[2], images[2, 8:28, 0:20][:, ::-1])


def test_an_epoch_sees_each_image_once() -> None:
    labels = torch.arange(20)
    batches = Batches(numbered(20), labels, batch_size=5, seed=3)
    epochs = [
        torch.cat([batches(epoch * 4 + step, crop=28, augment=False)[1] for step in range(4)])
        for epoch in (0, 1)
    ]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, labels)
    assert not torch.equal(*epochs)


def test_without_augmentation_images_are_whole_and_unchanged() -> None:
    pixels = numbered(8)
    batches = Batches(pixels, torch.arange(8), batch_size=8, seed=0)
    cut, labels = batches(0, crop=28, augment=False)
    assert torch.equal(cut, pixels[labels])


def test_whole_images_are_shifted_over_black() -> None:
    pixels = torch.full((400, 28, 28), 255, dtype=torch.uint8)
    batches = Batches(pixels, torch.zeros(400, dtype=torch.int64), batch_size=400, seed=0)
    cut, _ = batches(0, crop=28, augment=True)
    columns = (cut[:, 14] == 0).sum(1)  # as many black ones as the image moved
    assert columns.unique().tolist() == [0, 1, 2]
    assert cut.unique().tolist() == [0, 255]


def test_about_half_of_the_images_are_mirrored() -> None:
    pixels = torch.arange(28, dtype=torch.uint8).expand(400, 28, 28).contiguous()
    batches = Batches(pixels, torch.zeros(400, dtype=torch.int64), batch_size=400, seed=0)
    cut, _ = batches(0, crop=20, augment=True)
    mirrored = int((cut[:, 0, 0] > cut[:, 0, 1]).sum())
    assert 150 < mirrored < 250
    assert len(cut.amin((1, 2)).unique()) == 9  # the crop lies anywhere


def test_processes_share_a_batch_as_if_they_were_one() -> None:
    alone = Batches(numbered(12), torch.arange(12), batch_size=6, seed=1)
    whole = alone(1, crop=20, augment=True)
    parts = [replace(alone, rank=rank, world=2)(1, crop=20, augment=True) for rank in (0, 1)]
    for i in (0, 1):
        assert torch.equal(torch.stack([parts[0][i], parts[1][i]], 1).flatten(0, 1), whole[i])


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_orthogonalises(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.linalg.svdvals(orthogonalise(matrix))
    assert found.min() > 0.3
    assert found.max() < 1.3
    off_diagonal = u.T @ orthogonalise(matrix) @ v.T
    off_diagonal.fill_diagonal_(0)
    assert off_diagonal.abs().max() < 1e-4  # the singular vectors stay


def test_muon_steps_like_torch_on_matrices() -> None:
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.ones(32, 16)) for _ in range(2))
    optimizers = (
        Muon([mine], lr=0.02, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.05),
    )
    for _ in range(3):
        mine.grad = torch.randn(32, 16)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (mine - 1).abs().max() > 0.01
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)  # bfloat16 in another order


def test_every_parameter_has_one_optimizer() -> None:
    network = NiN()
    for recipe in (BOOK, BEST):
        optimizers = make_optimizers(network, recipe, torch.float32)
        trained = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        assert sorted(map(id, trained)) == sorted(map(id, network.parameters()))
    muon = optimizers[0].param_groups[0]["params"]
    assert [tuple(w.shape) for w in muon[-2:]] == [(10, 384, 3, 3), (10, 10, 1, 1)]


def test_the_rate_rises_and_falls_linearly() -> None:
    assert [lr_factor(BEST, p) for p in (0, 0.025, 0.05, 0.525)] == pytest.approx([0, 0.5, 1, 0.5])
    assert lr_factor(BEST, 0.9999) < 0.001
    assert lr_factor(BOOK, 0.3) == 1


def test_draws_what_was_measured(tmp_path: Path) -> None:
    log = [{"epoch": e, "train_loss": 1 / e, "train_accuracy": 0.5} for e in (1, 2)]
    draw_curves(log, "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_finds_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = find_device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert find_precision("auto", cpu) == torch.float32  # no bfloat16 in hardware
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert find_precision("auto", cpu) == torch.bfloat16
    assert find_precision("float32", cpu) == torch.float32
    with pytest.raises(InputError, match="no device cuda:99 here .*; choose `cpu`"):
        find_device("cuda:99")


@pytest.mark.gpu
def test_finds_a_gpu() -> None:
    assert find_device("auto").type == "cuda"
    assert find_device("cuda:0").index == 0
