"""How many threads every instance of this process computes with, whatever the runtime."""

_threads = 0


def set_threads(count: int) -> None:
    """Call it before anything is loaded; 0 leaves it to the runtimes, which take every core."""
    global _threads
    _threads = count


def threads() -> int:
    return _threads
