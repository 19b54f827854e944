"""`.pt2` packages of the tests' small model: to compile one takes a compiler a quarter minute."""

import io

import numpy as np
import torch
from numpy.typing import NDArray

from nin.artifact.metadata import Metadata
from nin.contract import Graph
from nin.export.pt2_file import Pt2Program, compile_pt2, exporter_versions, unfused_pt2, write_pt2
from nin.network.build import TrainedModel
from nin.reference.exact import compute_golden
from nin.reference.quantised import quantised_golden
from nin.samples import open_samples


def samples_of(model: TrainedModel) -> NDArray[np.uint8]:
    samples = open_samples(model.contract, None)
    return samples.pixels(range(len(samples)))


def compile_graph(model: TrainedModel, graph: Graph, *, int8: bool) -> Pt2Program:
    """Calibrated by the samples where it is int8, so the graph must be the classifier's."""
    batch = compute_golden(model, graph, samples_of(model)).batch(graph)
    example = torch.tensor(batch[:1]).repeat_interleave(2, dim=0)
    return compile_pt2(model.module(graph), example, graph, torch.tensor(batch) if int8 else None)


def package(model: TrainedModel, graph: Graph, program: Pt2Program) -> bytes:
    """With golden vectors and all that an export carries."""
    golden = compute_golden(model, graph, samples_of(model))
    if program.quantised:
        golden = quantised_golden(unfused_pt2(write_pt2(program, {}), graph), graph, golden)
    labels, versions = model.contract.labels, exporter_versions()
    metadata = Metadata(graph.describe(), labels, golden, model.weights_sha256, versions)
    return write_pt2(program, metadata.to_texts())


def with_text(data: bytes, key: str, text: str) -> bytes:
    """The package with one text replaced."""
    return with_record(data, f"extra/{key}", text.encode())


def read_record(data: bytes, name: str) -> bytes:
    return torch._C.PyTorchFileReader(io.BytesIO(data)).get_record(name)


def with_record(data: bytes, name: str, changed: bytes) -> bytes:
    """The package with one record replaced."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for each in reader.get_all_records():
        if not each.startswith(".data/"):  # the writer's own
            record = changed if each == name else reader.get_record(each)
            writer.write_record(each, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()
