"""Exports the trained network and the classifier to TorchScript, for LibTorch and Triton.

python export/to_torchscript.py
python export/to_torchscript.py --target-triton 24.10    # also says which torch will load it
"""

from nin.cli import parser, run
from nin.exporting import Format, add_export_options, run_export
from nin.runtimes.torchscript import TorchScriptRuntime
from nin.torchscript_export import export_torchscript, exporter_versions, read_torchscript_texts
from nin.triton_releases import triton_release


def main() -> None:
    options = parser(__doc__)
    add_export_options(options)
    torchscript_format = Format(
        name="torchscript",
        suffix=".pt",
        export=export_torchscript,
        read_texts=read_torchscript_texts,
        open=TorchScriptRuntime,
        versions=exporter_versions(),
    )
    options.add_argument(
        "--target-triton", metavar="YY.MM", help="the release of Triton that shall load the export"
    )
    args = options.parse_args()
    release = triton_release(args.target_triton) if args.target_triton else None
    run_export(args, torchscript_format)
    if release:
        print(
            f"Triton {args.target_triton} carries torch {release.torch}; "
            "the exports use only operators that torch has had since 1.13"
        )


if __name__ == "__main__":
    run(main)
