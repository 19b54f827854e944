"""The texts in a file, which each format stores in its own way."""

import io

import onnx
import torch
from google.protobuf.message import DecodeError


def read_onnx_texts(data: bytes) -> dict[str, str]:
    """The `metadata_props` of a model; empty for bytes that aren't one."""
    try:
        return {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    except DecodeError:
        return {}


def read_torchscript_texts(data: bytes) -> dict[str, str]:
    """The extra files of an archive; empty for bytes that aren't one."""
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))
        records = [r for r in reader.get_all_records() if r.startswith("extra/")]
        return {r.removeprefix("extra/"): reader.get_record(r).decode() for r in records}
    except (RuntimeError, UnicodeDecodeError):
        return {}
