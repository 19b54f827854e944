"""The training loop, and how it stops and goes on without a trace."""

import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nin.errors import CheckError, InputError, first_line
from nin.files import write_atomically
from nin.training import batch_norm
from nin.training.batches import DROPOUT, SIDE, Batches, mix
from nin.training.cpu_speed import accelerated
from nin.training.devices import Process
from nin.training.network import NiN, images_of
from nin.training.optimizers import make_optimizers
from nin.training.recipes import Recipe, lr_factor

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"

_CHECKPOINT_EVERY_S = 300  # so much is lost at most where the process is killed
_EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Settings:
    """What a run is: a checkpoint goes on only under the very same."""

    recipe: Recipe
    seed: int
    images: int  # to train on
    held_out: int  # of the training set
    start: str  # SHA-256 of the weights to start from, or "" for fresh ones
    device: str
    precision: str
    compiled: bool

    def flat(self) -> dict[str, Any]:
        """The recipe's entries beside the others."""
        settings = asdict(self)
        return {**settings.pop("recipe"), **settings}


@dataclass
class State:
    """How far a run is; with weights and optimizers all that a checkpoint holds."""

    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)  # one entry per finished epoch
    # of the epoch so far, over all processes: losses, right answers, images
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    epoch_seconds: float = 0.0


class Trainer:
    """A network in training."""

    def __init__(
        self,
        network: NiN,
        batches: Batches,
        settings: Settings,
        *,
        process: Process,
        folder: Path,
    ) -> None:
        self.settings = settings
        self.batches = batches
        self.process = process
        self.folder = folder
        self.device = batches.pixels.device
        self.dtype: torch.dtype = getattr(torch, settings.precision)
        if settings.recipe.batch_norm:
            batch_norm.add_to(network)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.recipe.batch_norm and settings.start:
            batch_norm.fit(self.network, _image(batches.pixels[: settings.recipe.batch_size]))
        self.takes_pixels = False  # where it is accelerated
        self.optimizers = make_optimizers(self.network, settings.recipe, self.dtype)
        self.state = State()
        forward: nn.Module = self.network
        if process.world > 1:
            forward = DistributedDataParallel(forward)
        # the two sizes of images are compiled each for itself
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(forward, dynamic=False) if settings.compiled else forward
        )

    @property
    def steps(self) -> int:
        return self.settings.recipe.epochs * self.batches.per_epoch

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        """Steps within are faster on a CPU, and the same but for rounding."""
        if self.device.type != "cpu":
            yield
            return
        self.takes_pixels = self.dtype == torch.float32 and not self.settings.compiled
        try:
            with accelerated(self.network, convolutions=self.takes_pixels):
                yield
        finally:
            self.takes_pixels = False

    def step(self) -> Tensor:
        """One batch forward, backward and into the weights.

        Returns:
            (3,): the sum of the losses, and how many answers were right, of how many images, in
            this process's share of the batch.
        """
        recipe, number = self.settings.recipe, self.state.step
        pixels, labels = self.batches(number, crop=self._crop(number))
        torch.manual_seed(mix(self.settings.seed, DROPOUT, number, self.process.rank))
        self.network.train()
        images = pixels if self.takes_pixels else _image(pixels)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.forward(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        factor = lr_factor(recipe, (number + 1) / (self.steps + 1))  # never 0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.state.step += 1
        right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([loss.detach() * len(labels), right, loss.new_full((), len(labels))])

    def _crop(self, step: int) -> int:
        """The side of the step's images."""
        recipe = self.settings.recipe
        return recipe.crop if step / self.steps < recipe.crop_until else SIDE

    def train(self, validation: tuple[Tensor, Tensor] | None, stop: Callable[[], bool]) -> bool:
        """Trains to the end, from wherever the state is.

        Args:
            validation: pixels (N, 28, 28) uint8 and labels (N,), looked at after each epoch.
            stop: says whether to stop early; asked after each step, or after 20 on a GPU.

        Returns:
            False if `stop` said so in one of the processes; the checkpoint is written then too.

        Raises:
            CheckError: the loss is no number any more; the last good checkpoint is kept.
        """
        # A GPU runs ahead of Python, and reading the loss would make it wait.
        look_every = 1 if self.device.type == "cpu" else 20
        state, per_epoch = self.state, self.batches.per_epoch
        totals = torch.tensor(state.totals, dtype=torch.float64, device=self.device)
        saved = time.monotonic()
        with self._bar() as bar:
            looked = time.monotonic()
            while True:
                if state.step == (len(state.log) + 1) * per_epoch:
                    self._end_epoch(validation)
                    totals.zero_()
                    self.save()
                    (stopping,) = self.process.any((stop(),), self.device)
                    if stopping and state.step < self.steps:
                        return False
                    looked = time.monotonic()  # evaluating and saving are no training
                if state.step == self.steps:
                    return True
                totals += self.process.sum(self.step())
                ends = state.step % per_epoch == 0
                if not ends and state.step % look_every:
                    continue
                state.totals = totals.tolist()
                self._check_finite(math.isfinite(state.totals[0]))
                state.epoch_seconds += time.monotonic() - looked
                self._show(bar)
                due = time.monotonic() - saved > _CHECKPOINT_EVERY_S
                stopping, due = self.process.any((stop(), due), self.device)
                if ends or stopping or due:
                    self.save()
                    saved = time.monotonic()
                if stopping:
                    return False
                looked = time.monotonic()

    def _end_epoch(self, validation: tuple[Tensor, Tensor] | None) -> None:
        state = self.state
        loss, right, count = state.totals
        entry: dict[str, Any] = {
            "epoch": state.step // self.batches.per_epoch,
            "step": state.step,
            "crop": self._crop(state.step - 1),
            "train_loss": loss / count,
            "train_accuracy": right / count,
        }
        if validation is not None:
            loss, accuracy = self.evaluate(*validation)
            entry |= {"validation_loss": loss, "validation_accuracy": accuracy}
        entry |= {
            "examples_per_second": self._examples(self.batches.per_epoch) / state.epoch_seconds,
            "train_seconds": state.epoch_seconds,
        }
        state.log.append(entry)
        state.totals, state.epoch_seconds = [0.0, 0.0, 0.0], 0.0

    def evaluate(self, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
        """Cross-entropy and accuracy, in the training's precision; each process does its share."""
        mine = self.process.share
        title = "held-out images" if self.process.leads else ""
        logits = predict(self.network, pixels[mine], self.dtype, title=title)
        loss = F.cross_entropy(logits, labels[mine], reduction="sum")
        right = (logits.argmax(1) == labels[mine]).sum()
        loss, right = self.process.sum(torch.stack([loss, right]))
        return float(loss) / len(labels), float(right) / len(labels)

    def save(self) -> None:
        """Writes the checkpoint and the log, each whole or not at all."""
        # the weights are the same in every process, so all stop here or none does
        self._check_finite(
            all(bool(t.isfinite().all()) for t in self.network.state_dict().values())
        )
        if not self.process.leads:
            return
        checkpoint = {
            "settings": self.settings.flat(),
            "state": asdict(self.state),
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_atomically(self.folder / CHECKPOINT, data.getvalue())
        log = "".join(f"{json.dumps(entry)}\n" for entry in self.state.log)
        write_atomically(self.folder / LOG, log.encode())

    def resume(self) -> None:
        """Goes back to the checkpoint in the folder.

        Raises:
            InputError: there is none, it is damaged, or it is of another run.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            raise InputError(f"no {path} to resume from; start without --resume")
        try:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch.load doesn't look at checksums
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            found = dict(checkpoint["settings"])
            state = State(**checkpoint["state"])
        except Exception as error:  # torch.load raises whatever its parts raise
            raise InputError(
                f"{path} isn't a checkpoint of this program ({first_line(error)}); "
                "remove it, or start again with --force"
            ) from error
        differences = [
            f"{name} is {found.get(name)} there, {value} here"
            for name, value in self.settings.flat().items()
            if found.get(name) != value
        ]
        if differences:
            shown = "; ".join(differences[:3]) + ("; ..." if differences[3:] else "")
            raise InputError(
                f"{path} is of another run: {shown}; give the options it was "
                "started with, another --output, or --force to start again"
            )
        try:
            self.network.load_state_dict(checkpoint["network"])
            for optimizer, saved in zip(self.optimizers, checkpoint["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} is of another network: {first_line(error)}; start again with --force"
            ) from error
        self.state = state

    def _check_finite(self, finite: bool) -> None:
        if not finite:
            good = self.folder / CHECKPOINT
            kept, force = "nothing was saved", ""
            if good.is_file():
                kept, force = f"the last good checkpoint is {good}", "--force and "
            raise CheckError(
                f"the loss or a weight isn't a finite number after step {self.state.step}; {kept}; "
                f"start again with {force}a lower --lr or another --seed"
            )

    def _examples(self, steps: int) -> int:
        return steps * self.settings.recipe.batch_size

    def _bar(self) -> "tqdm[Any]":
        return tqdm(
            total=self._examples(self.steps),
            initial=self._examples(self.state.step),
            unit="img",
            disable=not self.process.leads,
        )

    def _show(self, bar: "tqdm[Any]") -> None:
        loss, right, count = self.state.totals
        epoch = (self.state.step - 1) // self.batches.per_epoch + 1
        bar.set_description(f"epoch {epoch}/{self.settings.recipe.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {loss / count:.3f}, accuracy {right / count:.3f}", refresh=False)
        bar.update(self._examples(self.state.step) - bar.n)


def predict(
    network: nn.Module, pixels: Tensor, dtype: torch.dtype = torch.float32, *, title: str
) -> Tensor:
    """The logits (N, classes), float32, of pixels (N, 28, 28) uint8; nothing is dropped out.

    A terminal shows a progress bar of that title, if it isn't empty, until it is done.
    """
    network.eval()
    device = pixels.device.type
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        parts = tqdm(
            torch.split(pixels, _EVALUATION_BATCH),
            title,
            unit="batch",
            leave=False,
            disable=None if title else True,
        )
        return torch.cat([network(_image(part)).float() for part in parts])


def _image(pixels: Tensor) -> Tensor:
    image = images_of(pixels, torch.get_default_dtype())  # in which networks are made
    return image.contiguous(memory_format=torch.channels_last)
