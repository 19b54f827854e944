"""How good a model is, class by class: the same as `nin evaluate`.

python train/evaluate.py --runtime onnxruntime
"""

from nin.commands import evaluate
from nin.terminal import parser, run


def main() -> None:
    options = parser(evaluate.__doc__)
    evaluate.add_options(options)
    evaluate.execute(options.parse_args())


if __name__ == "__main__":
    run(main)
