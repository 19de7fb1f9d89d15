"""What is wrong with a source."""

from __future__ import annotations

__all__ = ["SourceError"]


class SourceError(ValueError):
    """Say in one line why a source cannot be learned from, and where the fault is.

    Examples
    --------
    >>> import gradcore
    >>> gradcore.data.load("nowhere.csv")
    Traceback (most recent call last):
    ...
    gradcore.data.errors.SourceError: nowhere.csv: no such file, and not one of the tasks sunspots, adding, ...
    """
