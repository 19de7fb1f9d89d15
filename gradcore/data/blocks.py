"""Cut a block of plain text into columns at once, for tables of a million rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gradcore._base.check import Array

__all__: list[str] = []  # for the package only

WIDEST = 64  # bytes of a cell
NEWLINE, QUOTE, ZERO = 10, 34, 0


def cut(block: str, delimiter: str, width: int, wanted: Iterable[int]) -> dict[int, Array] | None:
    """Return the wanted columns as arrays of bytes; None if some line has not `width` plain, short cells.

    `block` begins outside of quotes and ends with a line's end. A plain cell may stand in quotes, and then have
    delimiters, but neither line breaks nor quotes.
    """
    if not block.isascii() or not delimiter.isascii():
        return None
    text = np.frombuffer(block.encode("ascii"), np.uint8)
    separates = (text == ord(delimiter)) | (text == NEWLINE)
    quotes = text == QUOTE
    n_quotes = int(np.count_nonzero(quotes))
    if n_quotes:
        inside = np.logical_xor.accumulate(quotes)
        if inside[-1] or (inside & (text == NEWLINE)).any():
            return None
        separates &= ~inside
    ends: Array = np.flatnonzero(separates)
    last = np.flatnonzero(text[ends] == NEWLINE)
    if (np.diff(last, prepend=-1) != width).any():
        return None
    ends = ends.reshape(-1, width)
    starts = np.empty_like(ends)
    starts[:, 1:] = ends[:, :-1] + 1
    starts[0, 0], starts[1:, 0] = 0, ends[:-1, -1] + 1
    if n_quotes:
        quoted = (ends - starts >= 2) & (text[starts] == QUOTE) & (text[ends - 1] == QUOTE)
        if n_quotes != 2 * np.count_nonzero(quoted):
            return None
        starts, ends = starts + quoted, ends - quoted
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


def without_groups(letters: Array, point: str, sign: str) -> Array:
    """Return the bytes of numbers, (n, width), without the signs between thousands.

    Where a sign does not stand between thousands, all is left as it is.
    """
    signs = letters == ord(sign)
    rows = np.flatnonzero(signs.any(axis=1))
    if not rows.size:
        return letters
    signs, part = signs[rows], letters[rows]
    whole = (part >= ord("0")) & (part <= ord("9")) & ~np.logical_or.accumulate(part == ord(point), axis=1)
    counts = np.cumsum(whole, axis=1, dtype=np.int8)  # WIDEST fits
    n = counts[:, -1]
    left = n[:, None] - counts  # digits up to the fraction that follow
    first = part[np.arange(len(part)), whole.argmax(axis=1)]
    well = (signs.sum(axis=1) == (n - 1) // 3) & (first != ord("0")) & (n > 3)
    well &= ~(signs & ((left % 3 != 0) | (left == 0) | (left == n[:, None]))).any(axis=1)
    well &= ~(signs[:, 1:] & signs[:, :-1]).any(axis=1)
    if not well.all():
        return letters
    kept = ~signs
    bare = np.zeros_like(part)
    bare[np.arange(part.shape[1]) < kept.sum(axis=1, dtype=np.int8)[:, None]] = part[kept]  # row by row
    letters = letters.copy()
    letters[rows] = bare
    return letters


def as_texts(cells: Sequence[str] | Array) -> Sequence[str]:
    """Return cells as a list of str."""
    if isinstance(cells, np.ndarray):
        texts: list[str] = (cells.astype(np.str_) if cells.dtype.kind == "S" else cells).tolist()
        return texts
    return cells
