"""The two ways in which a command ends badly, and what helps against the system's errors."""

import errno

_REMEDIES = {
    errno.ENOSPC: "free some space (`df` shows where), or choose another folder",
    errno.EDQUOT: "your quota is used up: free some space, or choose another folder",
    errno.EROFS: "the disk can only be read; choose another folder",
    errno.EACCES: "choose another folder, or ask its owner",
    errno.EPERM: "choose another folder, or ask its owner",
    errno.EFBIG: "raise the limit of this shell (`ulimit -f`), or choose another disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of this shell (`ulimit -n`)",
    errno.EIO: "the disk is failing; choose another folder",
}


def explain(error: OSError) -> str:
    """The error in its own words, the file if it names one, and what helps if that is known."""
    reason = error.strerror or str(error)
    name = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{name}{reason}; {remedy}" if remedy else f"{name}{reason}"


class InputError(Exception):
    """A person's mistake: says what was found, what was expected, what to do. Exit code 2."""


class CheckError(Exception):
    """A check that did its work and said no. Exit code 1."""


class UnreachableError(InputError):
    """No answer came: nobody listens there, or the connection broke."""


class ServerError(InputError):
    """The server answered, and said no; the text is its own."""


def first_line(error: BaseException) -> str:
    """What somebody else's exception says first, or else its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
