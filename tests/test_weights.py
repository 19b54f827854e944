"""Weights as people have them: what is taken, what is said of it, and what is refused and why."""

import json
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nin.errors import InputError
from nin.network.torch_settings import ignore_deprecations
from nin.network.weights import WRAPPING_KEYS, load_weights, save_weights
from nin.paths import NIN as FOLDER
from nin.training.network import NiN

Tensors = dict[str, Tensor]


def make(seed: int = 0, outputs: int = 3) -> nn.Sequential:
    """A network with weights of every kind, and with buffers."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    norm.num_batches_tracked = torch.tensor(7)
    norm.running_var = torch.rand(4) + 1
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(4 * 4, outputs))


@pytest.fixture
def good() -> Tensors:
    return dict(make().state_dict())


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def load(path: Path) -> tuple[nn.Module, list[str]]:
    """Another network, filled in from the file, and what was said of it."""
    network = make(seed=1)
    return network, load_weights(network, path)


def assert_equal(network: nn.Module, expected: Tensors) -> None:
    torch.testing.assert_close(dict(network.state_dict()), expected, rtol=0, atol=0)


def refusal(path: Path) -> str:
    network = make(seed=1)
    with pytest.raises(InputError) as raised:
        load_weights(network, path)
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    assert_equal(network, dict(make(seed=1).state_dict()))  # untouched
    return text


def test_the_shipped_weights_carry_their_recipe_and_metrics() -> None:
    path = FOLDER / "weights.safetensors"
    assert load_weights(NiN(), path) == []
    with safe_open(path, framework="pt") as file:
        carried = {name: json.loads(text) for name, text in file.metadata().items()}
    assert carried["recipe"]["optimizer"] == "muon"
    assert carried["metrics"]["test_accuracy"] >= 0.945
    about = json.loads((FOLDER / "weights.json").read_text())
    assert about == {name: carried[name] for name in ("recipe", "metrics")}


def test_what_is_saved_is_loaded(tmp_path: Path, good: Tensors) -> None:
    path = tmp_path / "a folder" / "w.safetensors"
    save_weights(path, make(), recipe="none", metrics={"accuracy": 0.1})
    network, notes = load(path)
    assert notes == []
    assert_equal(network, good)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"recipe": "none", "metrics": '{"accuracy": 0.1}'}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_takes_a_bare_state_dict(tmp_path: Path, good: Tensors, suffix: str) -> None:
    network, notes = load(write(tmp_path / f"w{suffix}", good))
    assert notes == []
    assert_equal(network, good)


def test_takes_the_form_of_before_torch_1_6(tmp_path: Path, good: Tensors) -> None:
    torch.save(good, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    network, notes = load(tmp_path / "w.pt")
    assert notes == []
    assert_equal(network, good)


@pytest.mark.parametrize("key", WRAPPING_KEYS)
def test_takes_off_a_wrapping_key_and_says_so(tmp_path: Path, good: Tensors, key: str) -> None:
    path = write(tmp_path / "w.pt", {"epoch": 3, "lr": 0.1, key: OrderedDict(good)})
    network, notes = load(path)
    assert notes == [f"{path}: took the weights under {key!r}"]
    assert_equal(network, good)


def test_takes_off_several_wrappings(tmp_path: Path, good: Tensors) -> None:
    named = {f"module.{name}": tensor.half() for name, tensor in good.items()}
    named["module.1.num_batches_tracked"] = good["1.num_batches_tracked"]
    path = write(tmp_path / "w.pt", {"model": {"state_dict": named}})
    network, notes = load(path)
    assert notes == [
        f"{path}: took the weights under 'model'",
        f"{path}: took the weights under 'state_dict'",
        f"{path}: took 'module.' off the names of the tensors",
        f"{path}: converted float16 to float32",
    ]
    assert_equal(network, {n: t.half().float() if t.is_floating_point() else t
                           for n, t in good.items()})  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.network."])
def test_takes_off_a_prefix_and_says_so(
    tmp_path: Path, good: Tensors, prefix: str, suffix: str
) -> None:
    named = {f"{prefix}{name}": tensor for name, tensor in good.items()}
    path = write(tmp_path / f"w{suffix}", named)
    network, notes = load(path)
    assert notes == [f"{path}: took {prefix!r} off the names of the tensors"]
    assert_equal(network, good)


def test_takes_the_wrappers_of_torch(tmp_path: Path, good: Tensors) -> None:
    wrapped: list[Any] = [nn.DataParallel(make()), AveragedModel(make()), torch.compile(make())]
    for number, network in enumerate(wrapped):
        loaded, notes = load(write(tmp_path / f"{number}.pt", network.state_dict()))
        assert len(notes) == 1
        assert_equal(loaded, good)


def test_a_prefix_before_some_names_is_another_network(tmp_path: Path, good: Tensors) -> None:
    named = {f"module.{name}": tensor for name, tensor in good.items()}
    text = refusal(write(tmp_path / "w.pt", {**named, "head.bias": torch.zeros(1)}))
    assert "is of another network: it has no tensor 0.weight, but head.bias" in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_converts_other_precisions_and_says_so(
    tmp_path: Path, good: Tensors, dtype: torch.dtype
) -> None:
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in good.items()}
    path = write(tmp_path / "w.safetensors", cast)
    network, notes = load(path)
    assert notes == [f"{path}: converted {str(dtype)[6:]} to float32"]
    assert_equal(network, {name: tensor.to(good[name].dtype) for name, tensor in cast.items()})


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path, good: Tensors) -> None:
    del good["1.num_batches_tracked"]
    network, notes = load(write(tmp_path / "w.pt", good))
    assert notes == []
    counted = make(seed=1).state_dict()["1.num_batches_tracked"]
    assert_equal(network, {**good, "1.num_batches_tracked": counted})


def test_names_the_first_tensor_that_does_not_fit(tmp_path: Path, good: Tensors) -> None:
    path = tmp_path / "w.safetensors"
    missing = {name: tensor for name, tensor in good.items() if name != "3.weight"}
    text = refusal(write(path, missing))
    assert text.endswith("is of another network: it has no tensor 3.weight")
    text = refusal(write(path, {**good, "fc.weight": torch.zeros(3)}))
    assert text.endswith("is of another network, which has no tensor fc.weight")
    text = refusal(write(path, {**good, "0.weight": torch.zeros(4, 3, 3, 3)}))
    assert text.endswith("0.weight is float32 (4, 3, 3, 3), expected float32 (4, 1, 3, 3)")
    text = refusal(write(path, {**good, "0.bias": torch.zeros(4, dtype=torch.int8)}))
    assert text.endswith("0.bias is int8 (4,), expected float32 (4,)")
    for bad in (float("nan"), float("inf")):
        text = refusal(write(path, {**good, "3.bias": torch.full((3,), bad)}))
        assert "can't be used: 3.bias holds NaN or infinity; train it again" in text


def test_names_other_classes(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "w.pt", make(outputs=10).state_dict()))
    assert text.endswith("3.weight is float32 (10, 16), expected float32 (3, 16)")


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    assert "no weights file at " in refusal(tmp_path / "w.safetensors")
    (tmp_path / "folder.pt").mkdir()
    assert "no weights file at " in refusal(tmp_path / "folder.pt")


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.999])
def test_refuses_truncated_files(tmp_path: Path, good: Tensors, share: float) -> None:
    good["large"] = torch.zeros(10_000)  # as in real files, most of it isn't names
    for suffix, options in (
        (".safetensors", None),
        (".pt", {}),
        (".pt", {"_use_new_zipfile_serialization": False}),
    ):
        whole = tmp_path / f"whole{suffix}"
        if options is None:
            save_file(good, whole)
        else:
            torch.save(good, whole, **options)
        data = whole.read_bytes()
        path = tmp_path / f"w{suffix}"
        path.write_bytes(data[: int(share * len(data))])
        assert refusal(path).endswith("copy it again")


def test_refuses_a_file_with_a_changed_bit(tmp_path: Path, good: Tensors) -> None:
    path = write(tmp_path / "w.pt", good)
    data = bytearray(path.read_bytes())
    data[data.find(good["3.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    assert re.search(r"is damaged: its w/data/\d has changed; copy it again", refusal(path))


def test_takes_a_safetensors_file_whose_first_bytes_look_like_json(
    tmp_path: Path, good: Tensors
) -> None:
    """The length of its header, little-endian, may be a space or a tab and a brace."""
    path = write(tmp_path / "w.safetensors", good)
    data = path.read_bytes()
    size, wanted = int.from_bytes(data[:8], "little"), int.from_bytes(b" {", "little")
    header = data[8 : 8 + size].ljust(wanted)
    path.write_bytes(wanted.to_bytes(8, "little") + header + data[8 + size :])
    assert_equal(load(path)[0], good)


def test_names_what_other_files_are(tmp_path: Path, good: Tensors) -> None:
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    assert "is a pointer of Git LFS, expected the weights; fetch them: `git lfs" in refusal(pointer)

    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(good, "a")}, indent=2))
    assert "is JSON, as the index of weights in several files is" in refusal(index)
    assert "safetensors.torch.save_file" in refusal(index)

    whole = write(tmp_path / "whole.pt", make())
    text = refusal(whole)
    assert "holds other objects than tensors, such as a whole pickled module" in text
    assert text.endswith("torch.save(network.state_dict(), 'weights.pt')")

    with ignore_deprecations():
        traced: Any = torch.jit.trace  # which has no types
        scripted = traced(make().eval(), torch.zeros(1, 1, 4, 4))
        torch.jit.save(scripted, tmp_path / "scripted.pt")
    text = refusal(tmp_path / "scripted.pt")
    assert "is a TorchScript file" in text
    assert text.endswith("torch.save(network.state_dict(), 'weights.pt')")


def itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def nested() -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # a prototype, says torch
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # as torch.load does
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        ([torch.zeros(3)], "holds a list, expected a state dict"),
        ({}, "holds nothing, expected a state dict"),
        (
            {"epoch": 3, "mine": {}},
            "isn't a state dict: 'epoch' is of type int, expected tensors, ",
        ),
        ({"state_dict": {"a": 1.0}}, "isn't a state dict: 'a' is of type float"),
        ({0: torch.zeros(3)}, "isn't a state dict: 0 is a key, expected the names of tensors"),
        (itself(), "isn't a state dict: 'model' is of type dict"),
        ({"a": torch.eye(3).to_sparse()}, "a is a sparse, nested or meta tensor, expected dense"),
        ({"a": torch.zeros(3, device="meta")}, "a is a sparse, nested or meta tensor"),
        ({"a": nested()}, "a is a sparse, nested or meta tensor"),
    ],
)
def test_says_what_a_file_of_torch_save_holds(tmp_path: Path, content: Any, message: str) -> None:
    assert message in refusal(write(tmp_path / "w.pt", content))


def test_runs_no_code_of_a_file(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    assert "unpickling those would run code" in refusal(write(tmp_path / "w.pt", {"a": Evil()}))
    assert not (tmp_path / "ran").exists()
