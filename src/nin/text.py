"""Which characters may stand on a line of a terminal or of a file."""

import unicodedata

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of others, ends of lines


def is_printable(character: str) -> bool:
    """Unlike str.isprintable it takes the spaces and joiners that languages write with."""
    return unicodedata.category(character) not in _UNPRINTABLE


def escape(text: str) -> str:
    """Without what breaks a line or a terminal: in the name of a file, say."""
    return "".join(c if is_printable(c) else ascii(c)[1:-1] for c in text)
