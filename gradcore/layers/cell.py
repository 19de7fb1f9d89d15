"""The table of recurrent cells: what the rest of the package asks about a cell, instead of asking for its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array
from gradcore.layers import dual_cells

__all__ = ["BY_NAME", "CELLS", "Cell", "Keeping", "Parts"]

Parts = tuple[Array, ...]  # h, or h and c


@dataclass(frozen=True)
class Keeping:
    """The gate that decides how much of the state is kept.

    Parameters
    ----------
    name : str
        Its name in words, such as "forget".
    gate : int
        Its place among the gates of the weights. A larger bias keeps more.
    opposed : tuple of int
        The gates whose bias is the opposite, so that what is kept and what is added make one.

    Examples
    --------
    >>> from gradcore.layers.cell import CELLS
    >>> cell = CELLS["lstm"]
    >>> cell.keeping.name, cell.gates[cell.keeping.gate]
    ('forget', 'f')
    """

    name: str
    gate: int
    opposed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A row of the table. A new cell is a row here, and a row and a file in src/recurrent/.

    Parameters
    ----------
    name : str
        The key of the row.
    layer : str
        The class whose layers have this cell; several cells of a class differ in their activation.
    kind : int
        Its number in the kernels.
    gates : tuple of str
        The blocks of rows of the weights, in PyTorch's order.
    kept : tuple of int
        Where the tape has the blocks of `Step.gates`.
    states : tuple of str
        The parts of the state: h, or h and c.
    dual : object
        The step and the step back on dual numbers, for the derivative of a step, and of a backward pass.
    keeping : Keeping, optional
        The gate that keeps the state, if the cell has one.
    slope : callable, optional
        The derivative of the activation as a function of h, for cells whose state passes W_hh and nothing else.

    Examples
    --------
    >>> from gradcore.layers.cell import CELLS
    >>> cell = CELLS["gru"]
    >>> cell.layer, cell.gates, cell.states
    ('GRU', ('r', 'z', 'n'), ('h',))
    """

    name: str
    layer: str
    kind: int
    gates: tuple[str, ...]
    kept: tuple[int, ...]
    states: tuple[str, ...]
    dual: dual_cells.DualCell
    keeping: Keeping | None = None
    slope: Callable[[Array], Array] | None = None

    def __reduce__(self) -> tuple[Callable[[str], Cell], tuple[str]]:
        return _row, (self.name,)  # a copy is the row itself, and a pickle does not fix the kernels' number


def _row(name: str) -> Cell:
    return CELLS[name]


def _tanh_slope(h: Array) -> Array:
    return np.asarray(1 - h**2)


def _relu_slope(h: Array) -> Array:
    return np.where(h <= 0, 0.0, 1.0)


def _table(*rows: Cell) -> dict[str, Cell]:
    return {row.name: row for row in rows}


def _first_rows(rows: Iterable[Cell]) -> dict[str, Cell]:
    """Return a row for each class of layers, by the class's name in lower case."""
    found: dict[str, Cell] = {}
    for row in rows:
        found.setdefault(row.layer.lower(), row)
    return found


def _cell(name: str, layer: str, gates: tuple[str, ...], dual: dual_cells.DualCell, **more: Any) -> Cell:
    """Return a row, with what the kernels know of the cell."""
    its = _kernels.cells()[name.upper()]
    gate_of = [i if i >= 0 else h for i, h in zip(its["ih"], its["hh"], strict=True)]
    kept = tuple(sorted(range(its["kept"]), key=gate_of.__getitem__))
    return Cell(name, layer, its["kind"], gates, kept, ("h", "c") if its["has_cell"] else ("h",), dual, **more)


CELLS = _table(
    _cell("rnn_tanh", "RNN", ("h",), dual_cells.RNN_TANH, slope=_tanh_slope),
    _cell("rnn_relu", "RNN", ("h",), dual_cells.RNN_RELU, slope=_relu_slope),
    _cell("lstm", "LSTM", ("i", "f", "g", "o"), dual_cells.LSTM, keeping=Keeping("forget", gate=1, opposed=(0,))),
    _cell("gru", "GRU", ("r", "z", "n"), dual_cells.GRU, keeping=Keeping("update", gate=1)),
)

BY_NAME = _first_rows(CELLS.values())  # "rnn", "lstm", "gru"
