"""`python export/to_triton.py` is `nin publish`."""

from nin.commands import publish
from nin.terminal import parser, run


def main() -> None:
    options = parser(publish.__doc__)
    publish.add_options(options)
    publish.execute(options.parse_args())


if __name__ == "__main__":
    run(main)
