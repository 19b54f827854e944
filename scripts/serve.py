"""`python scripts/serve.py` is `nin serve`."""

from nin.commands import serve
from nin.terminal import parser, run


def main() -> None:
    options = parser(serve.__doc__)
    serve.add_options(options)
    serve.execute(options.parse_args())


if __name__ == "__main__":
    run(main)
