"""The parts of training: batches, optimizers, schedule, curves, precision."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import conv2d

from nin.errors import InputError
from nin.network.build import load_model
from nin.network.classifier import Preprocess
from nin.paths import NIN as FOLDER
from nin.training import batch_norm, stem, winograd
from nin.training.batches import Batches, mix, rectangles, split, window
from nin.training.cpu_speed import accelerated, kept_memory
from nin.training.curves import draw_curves
from nin.training.data import load
from nin.training.devices import Process, find_device, find_precision
from nin.training.network import NiN, images_of
from nin.training.optimizers import Muon, make_optimizers, orthogonalise
from nin.training.recipes import BEST, BOOK, Recipe, lr_factor
from nin.training.trainer import Settings, Trainer


def numbered(count: int) -> torch.Tensor:
    """Images without two equal pixels in a row or column: any mix-up shows."""
    pixels = np.arange(count * 784).reshape(count, 28, 28) * 7919 % 251
    return torch.from_numpy(pixels.astype(np.uint8))


def test_holds_out_the_same_images_always() -> None:
    train, held_out = split(60_000)
    assert (len(train), len(held_out)) == (55_000, 5_000)
    assert len(torch.cat([train, held_out]).unique()) == 60_000
    assert torch.equal(held_out, split(60_000)[1])
    assert held_out[:4].tolist() == [35845, 27522, 33254, 23645]  # as for all weights so far


def test_cuts_and_mirrors_like_numpy() -> None:
    pixels = numbered(3)
    corner = torch.tensor([[0, 3, 8], [1, 8, 0]])
    cut = window(pixels, corner, torch.tensor([False, True, True]), 20)
    images = pixels.numpy()
    assert np.array_equal(cut[0], images[0, 0:20, 1:21])
    assert np.array_equal(cut[1], images[1, 3:23, 8:28][:, ::-1])
    assert np.array_equal(cut[2], images[2, 8:28, 0:20][:, ::-1])


ALONE = Process()
PLAIN = replace(BOOK, batch_size=5)
WHOLE = replace(BEST, batch_size=400, erase=0.0)


def make_batches(count: int, recipe: Recipe, *, seed: int = 0, process: Process = ALONE) -> Batches:
    return Batches(numbered(count), torch.arange(count), recipe, seed, process)


def order_of(batches: Batches, epoch: int) -> torch.Tensor:
    steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    return torch.cat([batches(step, crop=28)[1] for step in steps])


def test_an_epoch_sees_each_image_once() -> None:
    batches = make_batches(20, PLAIN)
    orders = [order_of(batches, epoch) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(20))
    assert not torch.equal(*orders)
    assert torch.equal(order_of(make_batches(20, PLAIN), 1), orders[1])
    assert not torch.equal(order_of(make_batches(20, PLAIN, seed=1), 1), orders[1])


def test_the_book_sees_whole_images_unchanged() -> None:
    batches = make_batches(8, replace(BOOK, batch_size=8))
    cut, labels = batches(0, crop=28)
    assert torch.equal(cut, batches.pixels[labels])


def test_whole_images_are_shifted_over_black() -> None:
    pixels = torch.full((400, 28, 28), 255, dtype=torch.uint8)
    batches = Batches(pixels, torch.zeros(400, dtype=torch.int64), WHOLE, seed=0)
    cut, _ = batches(0, crop=28)
    columns = (cut[:, 14] == 0).sum(1)  # as many black ones as the image moved
    assert columns.unique().tolist() == [0, 1, 2]
    assert cut.unique().tolist() == [0, 255]


def test_about_half_of_the_images_are_mirrored() -> None:
    pixels = torch.arange(28, dtype=torch.uint8).expand(400, 28, 28).contiguous()
    batches = Batches(pixels, torch.zeros(400, dtype=torch.int64), WHOLE, seed=0)
    cut, _ = batches(0, crop=20)
    mirrored = int((cut[:, 0, 0] > cut[:, 0, 1]).sum())
    assert 150 < mirrored < 250
    corners = cut.amin((1, 2)).unique()
    assert len(corners) == 9  # the crop lies anywhere


def test_a_share_of_the_images_loses_a_rectangle() -> None:
    pixels = torch.zeros(400, 28, 28, dtype=torch.uint8)
    recipe = replace(WHOLE, erase=0.25)
    cut, _ = Batches(pixels, torch.zeros(400, dtype=torch.int64), recipe, seed=0)(0, crop=28)
    noisy = cut > 0
    hit = noisy.any(2).any(1)
    assert 60 < int(hit.sum()) < 140
    assert set(cut.flatten().tolist()) == set(range(256))  # noise
    for image in noisy[hit]:
        rows, columns = (image.any(dim).nonzero().flatten() for dim in (1, 0))
        for found in (rows, columns):
            assert 4 <= found[-1] - found[0] + 1 <= 14
        inside = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.float().mean() > 0.8  # noise is black once in 256
    erased, _ = rectangles(4000, 20, 1.0, torch.Generator().manual_seed(0))
    assert erased.any(0).all()  # it may lie anywhere
    areas = erased.sum((1, 2))
    assert (int(areas.min()), int(areas.max())) == (3 * 3, 10 * 10)


def test_processes_share_a_batch_as_if_they_were_one() -> None:
    recipe = replace(BEST, batch_size=10, erase=0.5)
    whole, one, other = (
        make_batches(20, recipe, process=process)(0, crop=20)
        for process in (Process(), Process(rank=0, world=2), Process(rank=1, world=2))
    )
    for i in range(2):
        assert torch.equal(torch.stack([one[i], other[i]], 1).flatten(0, 1), whole[i])


def test_seeds_differ_in_all_that_is_random() -> None:
    orders = [order_of(make_batches(20, PLAIN, seed=seed), 0) for seed in (0, 1)]
    assert not torch.equal(*orders)
    # one image, so that only its cut tells the seeds apart
    recipe = replace(BEST, batch_size=1, erase=0.0)
    cuts = [make_batches(1, recipe, seed=seed)(0, crop=20)[0] for seed in (0, 1)]
    assert not torch.equal(*cuts)
    assert len({mix(seed, kind, n) for seed in (0, 1) for kind in (0, 1) for n in range(99)}) == 396


def normalised() -> NiN:
    """A network whose normalisations all do something."""
    torch.manual_seed(0)
    network = NiN().initialise("kaiming")
    batch_norm.add_to(network)
    for norm in network.modules():
        if isinstance(norm, batch_norm.BatchNorm):
            norm.num_batches_tracked.fill_(3)
            for values in (norm.weight.data, norm.running_var):
                values.uniform_(0.5, 2)
            for values in (norm.bias.data, norm.running_mean):
                values.normal_()
    return network.eval()


def test_folding_leaves_the_network_of_the_book_and_its_answers() -> None:
    network = normalised()
    plain = batch_norm.folded(network)
    assert plain.state_dict().keys() == NiN().state_dict().keys()
    image = torch.rand(2, 1, 224, 224)
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(plain(image), expected, rtol=1e-4, atol=1e-4)
        bare = NiN().eval()
        bare.load_state_dict(network.state_dict(), strict=False)
        assert (bare(image) - expected).abs().max() > 1  # it wasn't folded for nothing
    assert next(batch_norm.folded(network.to("meta")).parameters()).is_meta  # stays on its device


def test_finished_weights_answer_as_before_once_normalised() -> None:
    plain = load_model(FOLDER).network
    network = NiN()
    network.load_state_dict(plain.state_dict())
    batch_norm.add_to(network)
    pixels, _ = load("test")
    images = images_of(torch.tensor(pixels[:8]))
    batch_norm.fit(network, images)
    convs = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)][:9]
    for conv in convs:
        assert (conv.weight.flatten(1).norm(dim=1) - 1).abs().max() < 1e-5
    with torch.no_grad():
        expected = plain(images)
        # but for the variance, which is unbiased in the statistics and not in the batch
        torch.testing.assert_close(network.eval()(images), expected, rtol=0.01, atol=0.01)
        assert isinstance(network[6], torch.nn.Dropout)
        network[6].p = 0.0
        torch.testing.assert_close(network.train()(images), expected, rtol=1e-4, atol=1e-4)


def test_statistics_are_fair_after_few_batches() -> None:
    torch.manual_seed(0)
    norm = batch_norm.BatchNorm(3)
    x = 5 + 2 * torch.randn(64, 3, 9, 9)
    for part in x.split(32):
        norm(part)
    torch.testing.assert_close(norm.eval()(x), norm.train()(x), rtol=0, atol=0.05)


def test_the_last_blocks_maps_stay_as_they_are() -> None:
    network = normalised()
    blocks = [layer for layer in network if isinstance(layer, torch.nn.Sequential)]
    normed = [[hasattr(layer, "norm") for layer in block[::2]] for block in blocks]
    assert normed == [[True] * 3] * 3 + [[False] * 3]


def test_normalisation_compiles_in_one_piece() -> None:
    network = normalised().train()
    image = torch.rand(2, 1, 160, 160)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.manual_seed(1)
    expected = network(image)
    torch.manual_seed(1)
    assert torch.equal(compiled(image), expected)


def test_folding_a_network_without_normalisations_changes_nothing() -> None:
    network = NiN()
    for name, tensor in batch_norm.folded(network).state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def _normalise_a_half(rank: int, folder: Path) -> None:
    """One of two processes; what it finds goes to a file."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    norm, x, gradient = normalisation()
    mine = x[rank::2].clone().requires_grad_()
    y = norm(mine)
    y.backward(gradient[rank::2])
    found = {"y": y.detach(), "x": mine.grad, **{n: p.grad for n, p in norm.named_parameters()}}
    torch.save(found | dict(norm.named_buffers()), folder / f"{rank}.pt")
    dist.destroy_process_group()


def normalisation() -> tuple[batch_norm.BatchNorm, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return batch_norm.BatchNorm(3), torch.randn(8, 3, 5, 5) + 2, torch.randn(8, 3, 5, 5)


def test_two_processes_normalise_over_both_batches(tmp_path: Path) -> None:
    spawn(_normalise_a_half, (tmp_path,), nprocs=2)
    norm, x, gradient = normalisation()
    x.requires_grad_()
    y = norm(x)
    y.backward(gradient)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank, half in enumerate(halves):
        torch.testing.assert_close(half["y"], y[rank::2], rtol=1e-5, atol=1e-5)
        assert x.grad is not None
        torch.testing.assert_close(half["x"], x.grad[rank::2], rtol=1e-5, atol=1e-5)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(half[name], dict(norm.named_buffers())[name])
    for name, parameter in norm.named_parameters():
        both = halves[0][name] + halves[1][name]
        torch.testing.assert_close(both, parameter.grad, rtol=1e-4, atol=1e-4)


def test_makes_of_pixels_what_the_model_folder_says(pixels: NDArray[np.uint8]) -> None:
    model = load_model(FOLDER)
    images = torch.tensor(pixels[:4])
    assert torch.equal(images_of(images), Preprocess(model.contract)(images))
    crops = images[:, 3:23, 1:21]
    # the inner ones, which the resize doesn't see the edge of
    inner = images_of(images)[..., 3 * 8 + 8 : 23 * 8 - 8, 1 * 8 + 8 : 21 * 8 - 8]
    torch.testing.assert_close(images_of(crops)[..., 8:-8, 8:-8], inner)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("size", [(26, 26), (18, 18), (7, 10), (1, 3)])
def test_winograd_convolves_like_torch(size: tuple[int, int], taps: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(9, 6, *size, requires_grad=True)
    weight = torch.randn(5, 6, taps, taps, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    gradient = torch.randn(9, 5, *size)
    found, expected = (
        [output, *torch.autograd.grad(output, (image, weight, bias), gradient)]
        for output in (
            winograd.convolve(image, weight, bias),
            conv2d(image, weight, bias, padding=taps // 2),
        )
    )
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.parametrize("side", [20, 28])
def test_the_stem_convolves_pixels_like_torch_their_images(side: int) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (5, side, side), dtype=torch.uint8)
    network: Any = NiN().to(memory_format=torch.channels_last)
    weight, bias = network[0][0].weight, torch.randn(96, requires_grad=True)
    outputs = (
        stem.convolve(pixels, weight, bias),
        conv2d(images_of(pixels), weight, bias, stride=4),
    )
    gradient = torch.randn(outputs[1].shape)
    found, expected = ([y, *torch.autograd.grad(y, (weight, bias), gradient)] for y in outputs)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()
    stem.convolve(pixels, weight, bias).sum().backward()
    assert weight.grad.stride() == weight.stride()  # or DistributedDataParallel copies and warns


def test_with_the_stem_a_network_takes_pixels_too() -> None:
    torch.manual_seed(0)
    network, usual = (NiN(dropout=0.0).initialise("kaiming") for _ in range(2))
    usual.load_state_dict(network.state_dict())
    stem.use_in(network)
    pixels = torch.randint(256, (2, 20, 20), dtype=torch.uint8)
    image = images_of(pixels)
    assert torch.equal(network(image), usual(image))
    torch.testing.assert_close(network(pixels), usual(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_trains_by_stem_and_winograd_unless_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: bool
) -> None:
    called = []
    for module in (stem, winograd):

        def convolve(
            *tensors: torch.Tensor, module: Any = module, real: Any = module.convolve
        ) -> Any:
            called.append(module)
            return real(*tensors)

        monkeypatch.setattr(module, "convolve", convolve)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    recipe = replace(BEST, batch_size=2)
    pixels = torch.randint(256, (4, 28, 28), dtype=torch.uint8)
    trainer = Trainer(
        NiN(),
        Batches(pixels, torch.arange(4), recipe, seed=0),
        Settings(recipe, 0, 4, 0, "", "cpu", "float32", compiled),
        process=Process(),
        folder=tmp_path,
    )
    with trainer.accelerated():
        trainer.step()
    assert called == ([] if compiled else [stem, winograd, winograd, winograd])
    trainer.step()  # as ever
    assert len(called) in (0, 4)


def test_only_training_uses_winograd() -> None:
    torch.manual_seed(0)
    network, usual = (NiN(dropout=0.0).initialise("kaiming") for _ in range(2))
    usual.load_state_dict(network.state_dict())
    winograd.use_in(network)
    image = torch.rand(2, 1, 160, 160)
    assert torch.equal(network.eval()(image), usual.eval()(image))
    trained = network.train()(image)
    assert not torch.equal(trained, usual(image))
    torch.testing.assert_close(trained, usual(image), rtol=1e-4, atol=1e-6)
    for one in (network, usual):
        batch_norm.add_to(one.train())
    normed, expected = network(image), usual(image)
    assert not torch.equal(normed, expected)
    torch.testing.assert_close(normed, expected, rtol=1e-3, atol=1e-5)


def test_acceleration_ends_with_its_context() -> None:
    network = NiN()
    convs = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    with pytest.raises(KeyError), accelerated(network, convolutions=True):
        assert sum("forward" in vars(conv) for conv in convs) == 4
        raise KeyError
    assert not any("forward" in vars(conv) for conv in convs)
    with accelerated(network, convolutions=False):
        assert not any("forward" in vars(conv) for conv in convs)


def test_memory_is_kept_and_given_back() -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    size = 256 << 20
    before = resident()
    with kept_memory():
        torch.ones(size, dtype=torch.uint8)
        assert resident() - before > size / 2
    assert resident() - before < size / 2


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
        Muon([mine], lr=0.02, momentum=0.9, weight_decay=0.05, dtype=torch.bfloat16),
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
    for recipe, network in ((BOOK, NiN()), (BEST, normalised())):
        optimizers = make_optimizers(network, recipe, torch.float32)
        trained = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
        assert len(trained) == len(set(trained))
        left = [name for name, p in network.named_parameters() if id(p) not in trained]
        # biases whose convolutions are normalised
        expected = [f"{i}.{j}.bias" for i in (0, 2, 4) for j in (0, 2, 4)]
        assert left == (expected if recipe is BEST else [])
    muon = optimizers[0].param_groups[0]["params"]
    assert [tuple(w.shape) for w in muon[-2:]] == [(10, 384, 3, 3), (10, 10, 1, 1)]


def test_the_rate_rises_and_falls_linearly() -> None:
    assert [lr_factor(BEST, p) for p in (0, 0.025, 0.05, 0.525)] == pytest.approx([0, 0.5, 1, 0.5])
    assert lr_factor(BEST, 0.9999) < 0.001
    assert lr_factor(BOOK, 0.3) == 1


def test_draws_what_was_measured(tmp_path: Path) -> None:
    log = [{"epoch": e, "train_loss": 1 / e, "train_accuracy": 0.5} for e in (1, 2)]
    draw_curves(log, "title", tmp_path / "two.png")
    for entry in log:
        entry["validation_accuracy"] = 0.4
    draw_curves(log, "title", tmp_path / "three.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.png", "two.png"]
    for name, lines in (("two.png", 2), ("three.png", 3)):
        pixels = imread(tmp_path / name)[:, :, :3]
        colours = [to_rgb(f"C{i}") for i in range(3)]
        drawn = [bool((abs(pixels - colour) < 0.01).all(axis=2).any()) for colour in colours]
        assert drawn == [i < lines for i in range(3)]


def test_draws_a_line_where_another_run_went_on(tmp_path: Path) -> None:
    log = [{"epoch": e, "train_loss": 1 / e, "train_accuracy": 0.5} for e in (1, 2)]
    gray = []  # pixels in the column that has most
    for runs in (1, 2):
        draw_curves(log * runs, "title", tmp_path / "curves.png")
        pixels = imread(tmp_path / "curves.png")[:, :, :3]
        gray.append((abs(pixels - to_rgb("gray")) < 0.01).all(axis=2).sum(axis=0).max())
    assert gray[0] < 10 < gray[1]


def test_finds_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = find_device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert find_precision("auto", cpu) == "float32"  # no bfloat16 in hardware
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert find_precision("auto", cpu) == "bfloat16"
    assert find_precision("float32", cpu) == "float32"
    with pytest.raises(InputError, match="no device cuda:99 here .*; choose `cpu`"):
        find_device("cuda:99")


@pytest.mark.gpu
def test_finds_a_gpu() -> None:
    assert find_device("auto").type == "cuda"
    assert find_device("cuda:0").index == 0
