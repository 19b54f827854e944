import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nin.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nin.errors import InputError
from nin.exporting import load_deployable
from nin.model import NiN
from nin.paths import WEIGHTS

ARGUMENTS = {"arguments": json.dumps(NiN().arguments)}


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    save_file(tensors, path, metadata)
    return path


def test_the_shipped_weights_carry_their_recipe_and_metrics(checkpoint: Checkpoint) -> None:
    recipe = json.loads(checkpoint.recipe)
    assert recipe["optimizer"] == "muon"
    assert checkpoint.metrics["test_accuracy"] >= 0.945
    assert not checkpoint.network.training
    about = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert about == {"recipe": recipe, "metrics": checkpoint.metrics}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    network = NiN(num_classes=7, dropout=0.1)
    path = tmp_path / "a folder" / "w.safetensors"
    save_checkpoint(path, network, recipe="none", metrics={"accuracy": 0.1})
    loaded = load_checkpoint(path)
    assert loaded.network.arguments == {"num_classes": 7, "dropout": 0.1}
    assert (loaded.recipe, loaded.metrics) == ("none", {"accuracy": 0.1})
    torch.testing.assert_close(loaded.network.state_dict(), network.state_dict(), rtol=0, atol=0)
    with pytest.raises(InputError, match="has 7 classes, the contract 10"):
        load_deployable(path)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights file at .*w.safetensors"):
        load_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("share", [0, 0.00001, 0.1, 0.5, 0.999999])
def test_refuses_a_truncated_file(tmp_path: Path, share: float) -> None:
    data = WEIGHTS.read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="isn't a whole safetensors file"):
        load_checkpoint(tmp_path / "w.safetensors")


def test_names_the_first_tensor_that_does_not_fit(tmp_path: Path) -> None:
    path, good = tmp_path / "w.safetensors", NiN().state_dict()

    missing = {k: v for k, v in good.items() if k != "2.0.weight"}
    with pytest.raises(InputError, match=r"another network: it has no tensor 2\.0\.weight"):
        load_checkpoint(write(path, missing, ARGUMENTS))

    extra = {**good, "fc.weight": torch.zeros(3)}
    with pytest.raises(InputError, match=r"NiN has no tensor fc\.weight"):
        load_checkpoint(write(path, extra, ARGUMENTS))

    shape = {**good, "0.0.weight": torch.zeros(96, 3, 11, 11)}
    message = r"0\.0\.weight is float32 \(96, 3, 11, 11\), expected float32 \(96, 1, 11, 11\)"
    with pytest.raises(InputError, match=message):
        load_checkpoint(write(path, shape, ARGUMENTS))

    dtype = {**good, "0.0.bias": torch.zeros(96, dtype=torch.float16)}
    with pytest.raises(InputError, match=r"0\.0\.bias is float16 \(96,\), expected float32"):
        load_checkpoint(write(path, dtype, ARGUMENTS))

    for bad in (float("nan"), float("inf")):
        poisoned = {**good, "7.4.bias": torch.full((10,), bad)}
        with pytest.raises(InputError, match=r"7\.4\.bias holds NaN or infinity"):
            load_checkpoint(write(path, poisoned, ARGUMENTS))


def test_names_weights_that_need_a_conversion(tmp_path: Path) -> None:
    path, good = tmp_path / "w.safetensors", NiN().state_dict()
    convert = r"load it into NiN\(\) and write that with nin\.checkpoint\.save_checkpoint"

    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(good, tmp_path / "w.pt", **options)
        with pytest.raises(InputError, match=rf"w\.pt is a file of torch\.save, .*; {convert}"):
            load_checkpoint(tmp_path / "w.pt")

    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(good, "a")}, indent=2))
    with pytest.raises(InputError, match=f"index of weights in several files .*, {convert}"):
        load_checkpoint(index)

    for prefix in ("module.", "_orig_mod.", "model.network."):
        named = {f"{prefix}{name}": tensor for name, tensor in good.items()}
        for metadata in ({}, ARGUMENTS):
            with pytest.raises(InputError, match=f"'{prefix}' before .* of every .*, {convert}"):
                load_checkpoint(write(path, named, metadata))

    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = {name: tensor.to(dtype) for name, tensor in good.items()}
        for metadata in ({}, ARGUMENTS):
            message = f"is {str(dtype)[6:]} .*, expected float32; {convert}"
            with pytest.raises(InputError, match=message):
                load_checkpoint(write(path, cast, metadata))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({**ARGUMENTS, "metrics": "[1]"}, "its metrics aren't a JSON object"),
        ({}, "doesn't carry the network's arguments"),
        ({"arguments": "{"}, "of another network: arguments"),
        ({"arguments": '{"layers": 3}'}, "of another network: arguments"),
        ({"arguments": '{"num_classes": -1}'}, "of another network: arguments"),
        ({"arguments": '{"num_classes": "ten"}'}, "of another network: arguments"),
        ({"arguments": '{"num_classes": 1000000000000}'}, "of another network"),
    ],
)
def test_refuses_other_arguments(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_checkpoint(write(tmp_path / "w.safetensors", NiN().state_dict(), metadata))
