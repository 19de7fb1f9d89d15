"""Lyapunov exponents and singular values: what a trajectory of Jacobians does to small changes and to gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array, check_index, check_int, check_reals
from gradcore.spectral.logs import safe_log
from gradcore.spectral.members import drive, own_tape, run_without_dropout, steps_and_samples
from gradcore.spectral.trajectory import Trajectory

__all__ = ["entropy", "kaplan_yorke", "lyapunov_spectrum", "singular_values"]

# Between two separations of directions carried along: how far apart they should drift at most, in ln, and how far they
# may, else the steps are repeated in smaller blocks. Of the ln(1e16) = 37 that a double resolves, the slowest direction
# keeps what the drift leaves.
FAR, FARTHEST = 17.0, 23.0
MOST_STEPS = 10  # from one separation to the next
SMALL_STATE = 128  # numbers, up to which a product of Jacobians is formed


def lyapunov_spectrum(
    layer: Any, x: Array, state: Any = None, *, k: int | None = None, transient: int = 0, index: int | None = None
) -> Array:
    r"""Return the Lyapunov exponents of a layer driven by x: how fast small changes of its state grow.

    :math:`\lambda_i = mean_t \ln |R_{t,ii}|` with :math:`Q_t R_t = J_t Q_{t-1}`, J_t the Jacobian of step t and Q_0
    random orthonormal: one exponent for each direction. They sum to the mean of :math:`\ln |\det J_t|`. The largest is
    the rate at which a gradient grows backwards after many steps; a positive one means chaos forwards and explosion
    backwards.

    In a stack, each layer is driven by the one below and never by one above, so the joint Jacobian is block triangular.
    In the limit of many steps its spectrum is that of all layers together, each along its own trajectory, and this is
    what is computed. Dropout is off.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or Sequential
        The layer, of one direction, or a model with one such layer.
    x : ndarray, (T, B, I)
        The input of the layer or model, as in ``layer(x)``: (B, T, I) with `batch_first`.
    state : ndarray or tuple of ndarray, optional
        The initial state of the recurrent layer, as in ``layer(x, state)``.
    k : int, optional
        How many exponents to compute, by default all num_layers * H (2H for LSTM). The work grows with k.
    transient : int
        Steps at the beginning that only turn Q and are left out of the mean.
    index : int, optional
        Which layer of a stack to take alone, with its H exponents (2H for LSTM). By default all layers together.

    Returns
    -------
    ndarray, (k,)
        Natural logarithms per step in float64, largest first, averaged over the batch. -inf for a direction that a step
        annihilates; values about 36 below the largest are rounding errors of such directions.

    Raises
    ------
    TypeError
        If there is no recurrent layer.
    ValueError
        If there are several, the layer is bidirectional (its joint state has no single direction of time), k or
        transient is out of range, the batch is empty or the trajectory is not finite.
    IndexError
        If the index is out of range.

    References
    ----------
    Benettin et al., Meccanica 15, 1980; for recurrent networks Engelken, Wolf, Abbott, "Lyapunov spectra of chaotic
    recurrent neural networks", arXiv 2006.02427.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.0], [0.25, 2.0]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> exponents = spectral.lyapunov_spectrum(layer, np.ones((60, 1, 1)), transient=30)
    >>> np.exp(exponents).round(6)
    array([2. , 0.5])
    """
    layer, x = drive(layer, x)
    if layer.bidirectional:
        raise ValueError(
            "layer: expected a layer of one direction; the two directions of a bidirectional one run through time in "
            "opposite orders, so no joint state grows from step to step"
        )
    if index is not None:
        index = check_index("index", index, layer.num_layers)
    followed = range(layer.num_layers) if index is None else [index]
    state_size = layer.hidden_size * len(layer.cell.states)
    k = len(followed) * state_size if k is None else check_int("k", k, least=1)
    if k > len(followed) * state_size:
        raise ValueError(f"k: expected at most {len(followed) * state_size}, the size of the state, got {k}")
    transient = check_int("transient", transient)
    tape = run_without_dropout(layer, x, state)
    steps, samples = steps_and_samples(layer, x)
    if not samples or transient >= steps:
        raise ValueError(
            f"x: expected at least 1 sample and more than {transient} steps (transient), got B = {samples}, T = {steps}"
        )
    found = []
    for one in followed:
        start = np.random.default_rng(one).standard_normal((samples, min(k, state_size), state_size))
        trajectory = Trajectory.whole(layer, tape, one, steps, samples)
        _kernels.jacobian_separate(start, True)
        found.append(_exponents(_finite_steps(trajectory), steps, start, transient).mean(axis=0))
    exponents: Array = np.sort(np.concatenate(found))[::-1][:k]
    return exponents


def singular_values(
    layer: Any, tape: Any, k: int = 1, *, horizon: int | None = None, b: int = 0, index: int = 0
) -> Array:
    r"""Return how much a gradient can grow over many steps, as ln of singular values.

    These are the largest :math:`\ln \sigma_i(J_{t} J_{t-1} \cdots J_{t-n+1})` of one sample, t its last step. The first
    one bounds how much any gradient with respect to the last state can have grown on its way back over n steps, and no
    bound is sharper. Divided by n, it tends to the largest Lyapunov exponent as n grows. The product is formed for
    small states only; else SciPy's Lanczos iteration works with products of Jacobians and vectors.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or Sequential
        The layer, or a model with one such layer.
    tape : Tape
        The tape of a forward pass of `layer`.
    k : int
        How many singular values to compute, 1 to H, or 2H for LSTM.
    horizon : int, optional
        The number of steps n, by default all those of the sample.
    b : int
        Sample, 0 <= b < B.
    index : int
        Which layer and direction of a stack: layer * num_directions + direction. In the reverse direction the last step
        is t = 0.

    Returns
    -------
    ndarray, (k,)
        Natural logarithms in float64, largest first, -inf for 0. Those more than 30 below the first are lost in its
        rounding errors.

    Raises
    ------
    IndexError
        If b or index is out of range.
    TypeError
        If there is no recurrent layer.
    ValueError
        If there are several, the tape is another layer's, k or horizon is out of range, or the forward pass is not
        finite.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.0], [0.0, 2.0]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> _, tape = layer.forward(np.ones((20, 1, 1), np.float32))
    >>> spectral.singular_values(layer, tape, 2, horizon=10) / np.log(2)
    array([ 10., -10.])
    """
    layer, tape = own_tape(layer, tape)
    tape.record(index, 0, b)  # its errors name what is out of range
    rows, reverse = tape.trace.batch.rows_of(b)[:, None], index % layer.num_directions
    horizon = len(rows) if horizon is None else check_int("horizon", horizon, least=1)
    if horizon > len(rows):
        raise ValueError(f"horizon: expected at most {len(rows)}, the steps of sample {b}, got {horizon}")
    walk = rows[::-1] if reverse else rows
    trajectory = Trajectory(layer, tape, index, walk[-horizon:])
    n = trajectory.state_size
    if check_int("k", k, least=1) > n:
        raise ValueError(f"k: expected at most {n}, the size of the state, got {k}")
    cuts = tape.trace.batch.cuts_of(b)
    if ((cuts > 0) & (cuts <= horizon) if reverse else cuts >= len(rows) - horizon).any():
        return np.full(k, -np.inf)  # nothing passes a reset
    product = _Product(trajectory)
    if not math.isfinite(product.log_scale):
        return np.full(k, product.log_scale)
    if n <= SMALL_STATE or k > n // 4:
        basis = np.eye(n)
    else:
        from scipy.sparse.linalg import LinearOperator, svds

        start = np.random.default_rng(0).standard_normal(n)
        operator = LinearOperator((n, n), matvec=product.times, rmatvec=product.transposed_times, dtype=np.float64)
        basis = svds(operator, k, v0=start, return_singular_vectors="vh")[2]
    # From the product with the right singular vectors, because Lanczos has worked with the square of the product.
    found = np.linalg.svd(product.rows(basis), compute_uv=False)[:k]
    return np.asarray(safe_log(found) + product.log_scale)


class _Product:
    """The product of all Jacobians of a trajectory of one sample, divided by exp(log_scale) to stay in range."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory
        self._factors = trajectory.factors(0, len(trajectory.rows))  # (n, 1, D, H)
        if not np.isfinite(self._factors).all():
            raise ValueError("tape: expected a finite forward pass; its Jacobians are not")
        probe = np.random.default_rng(0).standard_normal((1, 1, trajectory.state_size))
        log_norm = np.empty((len(self._factors), 1, 1))
        trajectory.carry(probe / np.linalg.norm(probe), self._factors, log_norm=log_norm)
        self.log_scale = float(log_norm.sum())
        if math.isfinite(self.log_scale):
            self._factors[:, :, trajectory.linear] *= np.exp(-log_norm)[..., None]

    @cached_property
    def _back(self) -> Array:
        return np.ascontiguousarray(self._factors[::-1])

    def rows(self, v: Array) -> Array:
        """Return the product times each row of v (m, P*H)."""
        carried = np.array(v, np.float64)[None]
        self._trajectory.carry(carried, self._factors)
        return np.asarray(carried[0])

    def times(self, v: Array) -> Array:
        return self.rows(v.reshape(1, -1)).reshape(-1)

    def transposed_times(self, u: Array) -> Array:
        carried = np.array(u, np.float64).reshape(1, 1, -1)
        self._trajectory.carry(carried, self._back, transposed=True)
        return np.asarray(carried[0, 0])


def kaplan_yorke(exponents: Any) -> float:
    r"""Return the Kaplan-Yorke dimension: how many dimensions the neighbors of a trajectory come to fill.

    :math:`k + \sum_{i \le k} \lambda_i / |\lambda_{k+1}|` with k the largest number of exponents, counted from the
    largest, whose sum is not negative. It is 0 if all are negative, and n if all n sum to at least 0.

    Parameters
    ----------
    exponents : array_like, (n,)
        The whole spectrum, in any order; -inf is allowed.

    Returns
    -------
    float
        The dimension, between 0 and n.

    Raises
    ------
    TypeError, ValueError
        If the exponents are not a vector of real numbers, or one of them is NaN or inf.

    References
    ----------
    Kaplan and Yorke, "Chaotic behavior of multidimensional difference equations", 1979.

    Examples
    --------
    >>> from gradcore import spectral
    >>> round(spectral.kaplan_yorke([0.5, 0.0, -2.0]), 6)
    2.25
    """
    ordered = _spectrum(exponents)
    if np.abs(ordered).max(initial=0.0, where=np.isfinite(ordered)) > 1e290:  # the dimension is that of all over 2**100
        ordered = ordered * 2.0**-100
    sums = np.cumsum(ordered)
    k = int(np.count_nonzero(np.logical_and.accumulate(sums >= 0)))
    return float(k) if k in (0, len(ordered)) else k + float(sums[k - 1] / -ordered[k])


def entropy(exponents: Any) -> float:
    r"""Return the sum of the positive Lyapunov exponents: how much entropy a trajectory produces at most.

    :math:`\sum_i \max(\lambda_i, 0)` bounds the Kolmogorov-Sinai entropy, and equals it if Pesin's identity holds.

    Parameters
    ----------
    exponents : array_like, (n,)
        The largest exponents, in any order, as many as are positive or more.

    Returns
    -------
    float
        Nats per step, at least 0.

    Raises
    ------
    TypeError, ValueError
        If the exponents are not a vector of real numbers, or one of them is NaN or inf.

    References
    ----------
    Engelken, Wolf, Abbott, "Lyapunov spectra of chaotic recurrent neural networks", arXiv 2006.02427.

    Examples
    --------
    >>> from gradcore import spectral
    >>> spectral.entropy([0.5, 0.25, -2.0])
    0.75
    """
    with np.errstate(over="ignore"):
        return float(np.maximum(_spectrum(exponents), 0.0).sum())


def _spectrum(exponents: Any) -> Array:
    """Return exponents in float64, largest first."""
    given = check_reals("exponents", exponents)
    if given.ndim != 1:
        raise ValueError(f"exponents: expected shape (n,), got {given.shape}")
    wrong = np.flatnonzero(np.isnan(given) | np.isposinf(given))
    if wrong.size:
        raise ValueError(f"exponents: expected finite numbers or -inf, got {given[wrong[0]]} at position {wrong[0]}")
    return np.sort(given.astype(np.float64))[::-1]


def _finite_steps(trajectory: Trajectory) -> Callable[[Array, int, int], None]:
    """Return the `carry` of `_exponents` for a trajectory, which has to be finite."""

    def carry(v: Array, first: int, end: int) -> None:
        factors = trajectory.factors(first, end)
        finite = np.isfinite(factors).all(axis=(1, 2, 3))
        if not finite.all():
            step = first + int(np.argmin(finite))
            raise ValueError(f"x: expected a finite forward pass; step {step} is not")
        trajectory.carry(v, factors)

    return carry


def _exponents(carry: Callable[[Array, int, int], None], steps: int, v: Array, transient: int) -> Array:
    """Return the (B, k) exponents of a product of matrices over the steps from `transient` on.

    v (B, k, n) are k orthonormal rows, and carry(v, first, end) multiplies them by the matrices of these steps, in
    place.

    The R of many steps is the product of the triangular factors of blocks of steps, for any factorization that keeps
    the span of v. LU with pivots costs a third of QR, which only the first and the last step need. A block has as many
    steps as it can without drowning one row in the rounding errors of another. LAPACK is not used, because its threads
    and those of the kernels would wait for each other.
    """
    total, first, stride = np.zeros(v.shape[:2]), 0, 1
    before = np.empty_like(v)
    while first < steps:
        end = min(first + stride, transient if first < transient else steps)
        before[...] = v
        carry(v, first, end)
        logs = _kernels.jacobian_separate(v, end in (transient, steps))
        apart = _apart(logs, np.isneginf(total))
        if end - first > 1 and not apart <= FARTHEST:
            v[...] = before
            stride = (end - first) // 2
            continue
        total = logs if first == transient else total + logs
        stride = max(1, min(MOST_STEPS, 2 * (end - first), int((end - first) * FAR / max(apart, 1.0))))
        first = end
    return total / (steps - transient)


def _apart(logs: Array, gone: Array) -> float:
    """Return how far steps have driven vectors apart, or to the ends of a double's range; those at 0 do not count."""
    alive = ~gone
    high, low = logs.max(axis=1, where=alive, initial=-np.inf), logs.min(axis=1, where=alive, initial=np.inf)
    with np.errstate(invalid="ignore"):  # differences of vectors that have overflowed or just become 0
        apart = np.maximum((high - low).max(), np.abs(logs).max(where=alive, initial=0.0) / 20)
    return math.inf if np.isnan(apart) else float(apart)
