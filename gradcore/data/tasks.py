"""Learning tasks: batches of NumPy arrays, and the three synthetic tasks of the literature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gradcore._base.check import FLOAT32, Array, check_dtype, check_int, check_rng
from gradcore.data.errors import SourceError
from gradcore.losses import mse, softmax_cross_entropy

__all__ = ["Batches", "Task", "adding", "copy", "temporal_order"]

HELD_OUT_SEED = 2**32 - 5  # of sequences that are drawn to judge a model by,
REHEARSAL_SEED = 2**32 - 17  # and of those that options are chosen by
ORDER_SYMBOLS = 6  # A, B and four distractors
COPY_SYMBOLS, COPY_LENGTH = 10, 10  # eight symbols, the blank and the signal; ten of them to remember


def one_hot(indices: Array, n: int, dtype: np.dtype[Any] = FLOAT32) -> Array:
    """Return the rows of the identity matrix of size n that `indices` choose."""
    return np.eye(n, dtype=dtype)[indices]


def adding(
    rng: int | np.random.Generator | None, batch: int, length: int = 100, *, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """Draw one batch of the adding problem: recall two marked numbers and give their sum.

    Each step has two inputs: a number from U[0, 1), and a marker that is 1 at one step of each half and 0 elsewhere.
    The best constant answer, 1, has a mean squared error of 1/6.

    Parameters
    ----------
    rng : int, numpy.random.Generator or None
        The seed or the generator to draw from; None takes a fresh one.
    batch : int
        Number of sequences B.
    length : int
        Number of steps T, at least 2.
    dtype : dtype
        Of the arrays: float32 or float64.

    Returns
    -------
    x : ndarray, (T, B, 2)
        Numbers and markers.
    target : ndarray, (B, 1)
        Sum of the two marked numbers.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", 1997, experiment 4, in the form of Arjovsky, Shah and Bengio,
    "Unitary evolution recurrent neural networks", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.data import adding
    >>> x, target = adding(np.random.default_rng(0), batch=3, length=50)
    >>> x.shape, target.shape
    ((50, 3, 2), (3, 1))
    >>> bool(np.allclose((x[..., 0] * x[..., 1]).sum(0), target[:, 0]))
    True
    """
    batch, length, real = check_int("batch", batch), check_int("length", length, least=2), check_dtype(dtype)
    rng = check_rng(rng)
    rows = np.arange(batch)
    x = np.zeros((length, batch, 2), real)
    x[..., 0] = rng.random((length, batch))
    x[rng.integers(0, length // 2, batch), rows, 1] = 1
    x[rng.integers(length // 2, length, batch), rows, 1] = 1
    return x, (x[..., 0] * x[..., 1]).sum(0)[:, None]


def temporal_order(
    rng: int | np.random.Generator | None, batch: int, length: int = 100, *, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """Draw one batch of the temporal-order problem: say in which order two symbols came.

    Each step shows one of six symbols. Four are distractors; A or B appears at one step in [0.1 T, 0.2 T), and again A
    or B at one in [0.5 T, 0.6 T). The class is 0 for A A, 1 for A B, 2 for B A, 3 for B B.

    Parameters
    ----------
    rng : int, numpy.random.Generator or None
        The seed or the generator to draw from; None takes a fresh one.
    batch : int
        Number of sequences B.
    length : int
        Number of steps T, at least 2.
    dtype : dtype
        Of x: float32 or float64.

    Returns
    -------
    x : ndarray, (T, B, 6)
        One-hot symbols; A is 0, B is 1.
    labels : ndarray of int64, (B,)
        Class of each sequence.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", 1997, experiment 6a; positions as in Pascanu, Mikolov and
    Bengio, "On the difficulty of training recurrent neural networks", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.data import temporal_order
    >>> x, labels = temporal_order(np.random.default_rng(0), batch=4, length=50)
    >>> x.shape, labels.shape
    ((50, 4, 6), (4,))
    >>> x[:, 0, :2].sum()  # two of the symbols are A or B
    np.float32(2.0)
    """
    batch, length, real = check_int("batch", batch), check_int("length", length, least=2), check_dtype(dtype)
    rng = check_rng(rng)
    rows = np.arange(batch)
    symbols = rng.integers(2, ORDER_SYMBOLS, (length, batch))
    relevant = rng.integers(0, 2, (2, batch))
    for which, (start, stop) in enumerate(((0.1, 0.2), (0.5, 0.6))):
        first = int(start * length)
        symbols[rng.integers(first, max(int(stop * length), first + 1), batch), rows] = relevant[which]
    return one_hot(symbols, ORDER_SYMBOLS, real), 2 * relevant[0] + relevant[1]


def copy(
    rng: int | np.random.Generator | None, batch: int, delay: int = 100, *, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """Draw one batch of the copying problem: repeat ten symbols after a delay.

    A sequence has ten symbols out of eight, `delay` - 1 blanks, a signal and ten blanks: T = `delay` + 20 steps. The
    answer is the blank up to the signal, then the ten symbols. Without memory the best loss is 10 ln 8 / T.

    Parameters
    ----------
    rng : int, numpy.random.Generator or None
        The seed or the generator to draw from; None takes a fresh one.
    batch : int
        Number of sequences B.
    delay : int
        Number of steps between the symbols and the answer, at least 1.
    dtype : dtype
        Of x: float32 or float64.

    Returns
    -------
    x : ndarray, (delay + 20, B, 10)
        One-hot symbols; the blank is 8, the signal 9.
    labels : ndarray of int64, (delay + 20, B)
        Symbol to answer with at each step.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", 1997, in the form of Arjovsky, Shah and Bengio, "Unitary
    evolution recurrent neural networks", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.data import copy
    >>> x, labels = copy(np.random.default_rng(0), batch=2, delay=30)
    >>> x.shape, labels.shape
    ((50, 2, 10), (50, 2))
    >>> bool((x[:10].argmax(-1) == labels[-10:]).all())
    True
    """
    batch, delay, real = check_int("batch", batch), check_int("delay", delay, least=1), check_dtype(dtype)
    rng = check_rng(rng)
    blank, signal = COPY_SYMBOLS - 2, COPY_SYMBOLS - 1
    words = rng.integers(0, blank, (COPY_LENGTH, batch))
    symbols = np.full((delay + 2 * COPY_LENGTH, batch), blank)
    labels = symbols.copy()
    symbols[:COPY_LENGTH] = words
    symbols[-COPY_LENGTH - 1] = signal
    labels[-COPY_LENGTH:] = words
    return one_hot(symbols, COPY_SYMBOLS, real), labels


@dataclass(frozen=True)
class Batches:
    """Batches of a task that are the same each time they are iterated over.

    Parameters
    ----------
    task : Task
        What is drawn from.
    batch : int
        Number of sequences in a batch.
    steps : int
        Number of batches.
    seed : int
        Seed of the generator that draws them.

    Examples
    --------
    >>> from gradcore.data import load
    >>> batches = load("adding").batches(4, steps=3)
    >>> len(batches), sum(1 for x, target in batches)
    (3, 3)
    """

    task: Task
    batch: int
    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            yield self.task.draw(rng, self.batch)


class HeldOut(NamedTuple):
    """What a model is judged by: sequences that it is not trained on, and what is reached on them without a model.

    Parameters
    ----------
    draw : callable
        ``draw(n) -> (x, target)`` returns at most n of the sequences, the same ones each time.
    baselines : mapping of str to float
        The losses on them of "constant", the best answer that ignores the input, "last_value" and "seasonal".
    accuracies : mapping of str to float, optional
        The shares that these answers get right, where targets are labels.
    """

    draw: Callable[[int], tuple[Array, Array]]
    baselines: Mapping[str, float]
    accuracies: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Task:
    """Something to learn: its sizes, its loss and its batches. `load` makes one.

    Parameters
    ----------
    name : str
        What it is, in words.
    source : str
        What `load` was given.
    input_size : int
        Number of inputs at each step.
    output_size : int
        Number of outputs that the loss expects.
    steps : int
        Number of steps T of a sequence.
    every_step : bool
        Whether there is a target at every step, (T, B), or for the last step only.
    classes : bool
        Whether targets are labels (cross-entropy) or values (mean squared error).
    baseline : float
        Loss of the best answer that ignores the input.
    draw : callable
        ``draw(rng, batch) -> (x, target)`` with x float32, (T, B, input_size).
    held_out : HeldOut, optional
        What a model is judged by. By default sequences that `draw` draws from another seed, with `baseline`.
    within : callable, optional
        ``within()`` returns the same task made from nothing but what is trained on. By default what `draw` draws is
        without end, and the task itself will do.
    facts : mapping, optional
        What was read from a file, in JSON's types.

    Examples
    --------
    >>> from gradcore.data import load
    >>> task = load("copy", seq_len=30)
    >>> task.name, task.steps, task.input_size, task.output_size
    ('the copying problem', 50, 10, 10)
    """

    name: str
    source: str
    input_size: int
    output_size: int
    steps: int
    every_step: bool
    classes: bool
    baseline: float
    draw: Callable[[np.random.Generator, int], tuple[Array, Array]]
    held_out: HeldOut | None = None
    within: Callable[[], Task] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baselines(self) -> Mapping[str, float]:
        """The losses, on what is held out, of answers that need no model."""
        return {"constant": self.baseline} if self.held_out is None else self.held_out.baselines

    @property
    def accuracies(self) -> Mapping[str, float]:
        """The shares of what is held out that answers without a model get right; empty where there are no labels."""
        return {} if self.held_out is None else self.held_out.accuracies

    def accuracy(self, y: Array, target: Array) -> float | None:
        """Return the share of the labels for which a model's largest output stands.

        Parameters
        ----------
        y : ndarray, (B, output_size) or (T, B, output_size)
            Outputs of a model.
        target : ndarray
            Targets as `draw` returns them.

        Returns
        -------
        float or None
            From 0 to 1; None where targets are values.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.data import load
        >>> load("temporal-order").accuracy(np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0]))
        0.75
        """
        return float(np.mean(y.argmax(axis=-1) == target)) if self.classes else None

    def test(self, n: int = 512) -> tuple[Array, Array]:
        """Return sequences to judge a model by, the same ones each time.

        Parameters
        ----------
        n : int
            How many at most.

        Returns
        -------
        x : ndarray, (T, B, input_size)
            The sequences. Their targets are never among those that `draw` draws.
        target : ndarray
            The targets.

        Examples
        --------
        >>> from gradcore.data import load
        >>> x, target = load("sunspots").test()
        >>> x.shape[1] == target.shape[0]
        True
        """
        n = check_int("n", n, least=1)
        if self.held_out is None:
            return self.draw(np.random.default_rng(HELD_OUT_SEED), n)
        return self.held_out.draw(n)

    def rehearsal(self) -> Task | None:
        """Return the same task made from nothing but what is trained on, whose end is held out in its turn.

        Options of a training can be chosen on it, and what `test` returns is still unseen.

        Returns
        -------
        Task or None
            The task; None if what is trained on is too short to be divided again.

        Examples
        --------
        >>> from gradcore.data import load
        >>> task = load("sunspots", seq_len=50)
        >>> task.facts["windows"]["training"], task.rehearsal().facts["windows"]["training"]
        (198, 149)
        """
        if self.within is None:

            def draw(n: int) -> tuple[Array, Array]:
                return self.draw(np.random.default_rng(REHEARSAL_SEED), n)

            return replace(self, held_out=HeldOut(draw, self.baselines))
        try:
            return self.within()
        except SourceError:
            return None

    def loss(self, y: Array, target: Array) -> tuple[float, Array]:
        """Compute the loss, the mean over the targets, and its gradient with respect to y.

        Parameters
        ----------
        y : ndarray, (B, output_size) or (T, B, output_size)
            Outputs of a model; with the time axis if the task has a target at every step.
        target : ndarray
            Targets as `draw` returns them.

        Returns
        -------
        loss : float
            Mean squared error or cross-entropy.
        dy : ndarray
            Gradient with respect to y, of its shape.

        Raises
        ------
        TypeError, ValueError
            If the arrays do not fit.
        """
        if not self.classes:
            return mse(y, target)
        loss, dy = softmax_cross_entropy(y.reshape(-1, self.output_size), target.reshape(-1))
        return loss, dy.reshape(y.shape)

    def batches(self, batch: int, steps: int, *, seed: int = 0) -> Batches:
        """Return batches that depend on nothing but the seed.

        Parameters
        ----------
        batch : int
            Number of sequences in a batch.
        steps : int
            Number of batches.
        seed : int
            Seed of the generator that draws them.

        Returns
        -------
        Batches
            An iterable of (x, target) with a length.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid.
        """
        return Batches(self, check_int("batch", batch, least=1), check_int("steps", steps), check_int("seed", seed))


def adding_task(length: int) -> Task:
    """Return the adding problem as a task."""
    return Task(
        "the adding problem", "adding", 2, 1, length, False, False, 1 / 6, lambda rng, batch: adding(rng, batch, length)
    )


def temporal_order_task(length: int) -> Task:
    """Return the temporal-order problem as a task."""

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        return temporal_order(rng, batch, length)

    name = "the temporal-order problem"
    return Task(name, "temporal-order", ORDER_SYMBOLS, 4, length, False, True, math.log(4), draw)


def copy_task(delay: int) -> Task:
    """Return the copying problem as a task."""

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        return copy(rng, batch, delay)

    steps = delay + 2 * COPY_LENGTH
    baseline = COPY_LENGTH * math.log(COPY_SYMBOLS - 2) / steps
    return Task("the copying problem", "copy", COPY_SYMBOLS, COPY_SYMBOLS, steps, True, True, baseline, draw)
