"""Exports the trained network and the classifier to ONNX.

python export/to_onnx.py                           # both graphs, for any recent onnxruntime
python export/to_onnx.py --target-triton 24.10     # the newest opset that this release loads
"""

from functools import partial

from nin.cli import parser, run
from nin.exporting import Format, add_export_options, run_export
from nin.onnx_export import (
    DEFAULT_OPSET,
    OPSETS,
    choose_opset,
    export_onnx,
    exporter_versions,
    ir_version,
    read_onnx_texts,
)
from nin.runtimes.ort import OrtRuntime


def main() -> None:
    options = parser(__doc__)
    add_export_options(options)
    options.add_argument(
        "--opset",
        type=int,
        help=f"{OPSETS[0]} to {OPSETS[-1]}; {DEFAULT_OPSET} if neither this nor a target is given",
    )
    options.add_argument(
        "--target-triton", metavar="YY.MM", help="choose the opset for a release of Triton"
    )
    args = options.parse_args()
    opset = choose_opset(args.opset, args.target_triton)
    onnx_format = Format(
        name="onnx",
        suffix=".onnx",
        export=partial(export_onnx, opset=opset),
        read_texts=read_onnx_texts,
        open=OrtRuntime,
        versions=exporter_versions(),
        opset=opset,
        ir_version=ir_version(opset),
    )
    run_export(args, onnx_format)


if __name__ == "__main__":
    run(main)
