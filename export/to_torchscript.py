"""Exports the trained network and the classifier to TorchScript, for LibTorch and Triton.

python export/to_torchscript.py
"""

from nin.cli import parser, run
from nin.exporting import Format, add_export_options, run_export
from nin.runtimes.torchscript import TorchScriptRuntime
from nin.torchscript_export import export_torchscript, exporter_versions, read_torchscript_texts


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
    run_export(options.parse_args(), torchscript_format)


if __name__ == "__main__":
    run(main)
