"""Cut a block of plain text into columns at once, for tables of a million rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gradcore._base.check import Array

__all__: list[str] = []  # for the package only

WIDEST = 64  # bytes of a cell
NEWLINE, ZERO = 10, 0


def cut(block: str, delimiter: str, width: int, wanted: Iterable[int]) -> dict[int, Array] | None:
    """Return the wanted columns as arrays of bytes; None if some line has not `width` plain, short cells.

    `block` ends with a line's end and has no quotes.
    """
    if not block.isascii() or not delimiter.isascii():
        return None
    text = np.frombuffer(block.encode("ascii"), np.uint8)
    ends: Array = np.flatnonzero((text == ord(delimiter)) | (text == NEWLINE))
    last = np.flatnonzero(text[ends] == NEWLINE)
    if (np.diff(last, prepend=-1) != width).any():
        return None
    ends = ends.reshape(-1, width)
    starts = np.empty_like(ends)
    starts[:, 1:] = ends[:, :-1] + 1
    starts[0, 0], starts[1:, 0] = 0, ends[:-1, -1] + 1
    found = {}
    for column in wanted:
        start, length = starts[:, column], ends[:, column] - starts[:, column]
        widest = int(length.max())
        if not 0 < widest <= WIDEST:
            return None
        places = np.arange(widest)
        letters = text[np.minimum(start[:, None] + places, len(text) - 1)]
        letters[places >= length[:, None]] = ZERO
        found[column] = letters.view(f"S{widest}").ravel()
    return found


def letters_of(cells: Array) -> Array:
    """Return the bytes of an array of bytes, (n, width), as a view."""
    return cells.view(np.uint8).reshape(len(cells), -1)


def as_texts(cells: Sequence[str] | Array) -> Sequence[str]:
    """Return cells as a list of str."""
    if isinstance(cells, np.ndarray):
        texts: list[str] = (cells.astype(np.str_) if cells.dtype.kind == "S" else cells).tolist()
        return texts
    return cells
