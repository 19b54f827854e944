"""The two ways in which a command ends badly."""


class InputError(Exception):
    """A person's mistake: says what was found, what was expected, what to do. Exit code 2."""


class CheckError(Exception):
    """A check that did its work and said no. Exit code 1."""


class UnreachableError(InputError):
    """No answer came: nobody listens there, or the connection broke."""


class ServerError(InputError):
    """The server answered, and said no; the text is its own."""
