"""The error of a source that cannot be learned from."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["SourceError"]

MOST_LISTED = 20
SHOWN = 40  # characters of a cell in a message


class SourceError(ValueError):
    """Say in one line why a source cannot be learned from, and where the fault is.

    Parameters
    ----------
    message : str
        What was expected and what came; line breaks become spaces.

    Examples
    --------
    >>> import gradcore
    >>> gradcore.data.load("nowhere.csv")
    Traceback (most recent call last):
    ...
    gradcore.data.errors.SourceError: nowhere.csv: no such file, and not one of the tasks sunspots, ...
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.replace("\n", " "))  # names of files and columns may have more than one line


def listed(names: Iterable[str]) -> str:
    """Return names with commas between them, cut if they are long or many."""
    short = [name if len(name) <= SHOWN else name[: SHOWN - 3] + "..." for name in names]
    more = len(short) - MOST_LISTED
    return ", ".join(short[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def shown(cell: str) -> str:
    """Return a cell in quotes, cut if it is long."""
    return repr(cell if len(cell) <= SHOWN else cell[: SHOWN - 3] + "...")
