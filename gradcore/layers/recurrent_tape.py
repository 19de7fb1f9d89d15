"""What recurrent layers keep of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gradcore._base.check import (
    Array,
    check_index,
)
from gradcore.layers.functional import Trace
from gradcore.layers.tape import Profile, Tape
from gradcore.layers.telemetry import Telemetry

__all__ = ["RecurrentTape", "State", "Step"]

State = Any  # h, or (h, c) for LSTM


@dataclass(frozen=True)
class Step:
    """Hold what one layer and direction computed at one step of one sequence.

    Parameters
    ----------
    gates : ndarray, (K, H)
        RNN: h. LSTM: i, f, g, o. GRU: r, z, n and q = W_hn h + b_hn. All but q are after their activation.
    h : ndarray, (H,)
        The hidden state before the step.
    c : ndarray, (H,), or None
        The cell state before the step; LSTM only.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gru = gradcore.GRU(3, 5, rng=0)
    >>> y, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> step = tape.record(0, t=4, b=1)
    >>> r, z, n, q = step.gates
    >>> bool(np.allclose((1 - z) * n + z * step.h, y[4, 1]))
    True
    """

    gates: Array
    h: Array
    c: Array | None


class RecurrentTape(Tape):
    """Keep what `backward` needs of a forward pass.

    With S the sum of the lengths (T B without `lengths`), H' = H rounded up to whole vectors of the processor and K = 1
    (RNN) or 4 (LSTM, GRU), it keeps S rows for each layer and direction, of (K + 1) H' elements, or (K + 2) H' for
    LSTM: the gates and the state before the step. With layer norm 2 G H' + 16 more, G being 1 (RNN), 3 (GRU) or 4, and
    for LSTM another H'; with recurrent dropout another H'. A part of a row whose size is a multiple of 2 KiB takes 64
    bytes more. Layers above the first also keep their S rows of inputs.

    A tape can be pickled, but `backward` and `record` refuse it in a process that uses another instruction set, which
    lays out the gates in another way.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        The layer, whose `forward` makes the tape.
    trace : object
        What `backward` needs.

    Attributes
    ----------
    state : ndarray or tuple of ndarray
        The final state, like the initial one.
    dstate : ndarray, tuple of ndarray, or None
        dL/d(initial state); set by `backward`.
    telemetry : Telemetry or None
        The norms of the gradient at every layer and time step; set by `backward`.
    omega : ndarray, (L*D,), float64, or None
        The value of a `VanishingGradientRegularizer` for each layer and direction; set by it.
    keeps_given : bool
        Whether `backward` is to keep its arguments in `given`. That costs as much memory as y.
    given : tuple or None
        The arguments dy, dstate and step_clip of the last `backward`.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> lstm = gradcore.LSTM(3, 5, rng=0)
    >>> y, tape = lstm.forward(np.ones((7, 2, 3), np.float32))
    >>> tape
    <RecurrentTape of LSTM(3, 5): T=7, B=2>
    >>> dx = lstm.backward(tape, np.ones_like(y))
    >>> tape.dstate[0].shape, tape.telemetry.dh_norm.shape
    ((1, 2, 5), (1, 7))
    """

    layer: Any
    state: State = None
    dstate: State = None
    telemetry: Telemetry | None = None
    omega: Array | None = None
    keeps_given: bool = False
    given: tuple[Any, ...] | None = None

    def __init__(self, layer: Any, trace: Trace) -> None:
        self.trace, batch = trace, trace.batch
        outputs = (batch.T, batch.B, layer.num_directions * layer.hidden_size)
        super().__init__(layer, (outputs[1], outputs[0], outputs[2]) if layer.batch_first else outputs)

    @property
    def first_nonfinite(self) -> tuple[int, int, int] | None:
        """That of the telemetry."""
        return None if self.telemetry is None else self.telemetry.first_nonfinite

    def profiles(self) -> Iterator[Profile]:
        """Yield |dL/dh_t| of each layer and direction; nothing before `backward`.

        Yields
        ------
        Profile
            The name, the direction and the norms.
        """
        if self.telemetry is not None:
            yield from self.telemetry.profiles()

    @property
    def nbytes(self) -> int:
        """The size of what the tape keeps, in bytes."""
        return self.trace.nbytes

    def record(self, index: int, t: int, b: int) -> Step:
        """Return what one layer and direction computed at one step of one sequence.

        Parameters
        ----------
        index : int
            The layer and direction: layer * num_directions + direction.
        t : int
            The time step.
        b : int
            The sequence.

        Returns
        -------
        Step
            The gates, and the state before the step.

        Raises
        ------
        IndexError
            If an index is out of range, or the sequence has ended before step t.
        ValueError
            If the tape comes from a process that uses another instruction set.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> lstm = gradcore.LSTM(3, 5, rng=0)
        >>> y, tape = lstm.forward(np.ones((7, 2, 3), np.float32))
        >>> i, f, g, o = tape.record(0, t=6, b=1).gates
        >>> i.shape
        (5,)
        """
        index = check_index("index", index, len(self.trace))
        row, H = self.trace.batch.row(t, b), self.layer.hidden_size
        kept = self.trace.arrays[index]
        c = None if kept.c is None else kept.c[row, :H].copy()
        return Step(self.trace.gates(index, row), kept.h[row, :H].copy(), c)

    def __repr__(self) -> str:
        return f"<RecurrentTape of {self.layer!r}: T={self.trace.batch.T}, B={self.trace.batch.B}>"
