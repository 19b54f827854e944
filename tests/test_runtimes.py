from pathlib import Path

import onnxruntime
import pytest
import torch

from nin.errors import InputError
from nin.network.build import TrainedModel
from nin.runtimes.ort import OrtRuntime
from nin.runtimes.registry import CPU_RUNTIMES, RUNTIMES, available_runtimes, open_runtime
from nin.runtimes.torchscript import TorchScriptRuntime
from tests.models import NETWORK

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@no_cuda
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="an onnxruntime without CUDA can't fall back from it",
)
def test_onnxruntime_may_not_fall_back_to_the_cpu(artifacts: Path) -> None:
    with pytest.raises(InputError, match="onnxruntime fell back to CPUExecutionProvider"):
        OrtRuntime((artifacts / "nin.onnx").read_bytes(), NETWORK, device="cuda")


@no_cuda
@pytest.mark.parametrize("name", ["eager-cuda", "torchscript-cuda"])
def test_says_that_there_is_no_cuda_device(name: str, artifacts: Path, model: TrainedModel) -> None:
    with pytest.raises(InputError, match=f"no CUDA device for {name}"):
        open_runtime(name, NETWORK, artifacts=artifacts, model=model)


def test_offers_what_the_machine_has(artifacts: Path, model: TrainedModel) -> None:
    assert available_runtimes() == (RUNTIMES if torch.cuda.is_available() else CPU_RUNTIMES)
    with pytest.raises(InputError, match="unknown runtime tflite; known are eager, torchscript"):
        open_runtime("tflite", NETWORK, artifacts=artifacts, model=model)


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04"])
def test_refuses_what_is_no_export(data: bytes) -> None:
    with pytest.raises(InputError, match="onnxruntime can't load|not an export"):
        OrtRuntime(data, NETWORK)
    with pytest.raises(InputError, match="not a TorchScript archive"):
        TorchScriptRuntime(data, NETWORK)


@pytest.mark.parametrize("share", [i / 10 for i in range(1, 10)])
def test_refuses_truncated_exports(share: float, artifacts: Path) -> None:
    for name, open_bytes in (("nin.onnx", OrtRuntime), ("nin.pt", TorchScriptRuntime)):
        data = (artifacts / name).read_bytes()
        with pytest.raises(InputError, match="onnxruntime can't load|not a"):
            open_bytes(data[: int(share * len(data))], NETWORK)
