"""Will gradients through a recurrent layer grow or fade, how fast, and what of that is certain?

Matrices first, then the Jacobian of one time step, then what a trajectory of them does to a gradient. Everything here
is computed and returned in float64, in natural logarithms per time step, for layers of either dtype.

A step's Jacobian is never a dense matrix in the loops: `_Trajectory` has it as diagonal factors around the recurrent
weights, and its `carry` is the only place that multiplies with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from gradcore import _kernels
from gradcore._check import Array, check_index, check_int, check_number, check_reals, check_room
from gradcore._layer import Pool

Verdict = Literal["explodes", "vanishes", "stable"]
Kind = Literal["necessary", "sufficient", "asymptotic"]

# "stable": the gradient changes by less than 1 % a step and by less than a factor of 10 over the horizon.
STABLE_RATE = 0.01
STABLE_FACTOR = 10.0

PROBES = 32  # random gradients carried back through each layer, over all samples together, when the batch has fewer
ROUNDING = 1e-12  # added to bounds that a rate may reach
BLOCK_BYTES = 4 << 20  # of factors that are made at a time
# Directions that are carried along part, ln of by how much: where they are separated, and beyond which steps are taken
# anew. Of the slowest direction rounding leaves ln(1e16) = 37 less so many digits.
FAR, FARTHEST = 17.0, 23.0
MOST_STEPS = 10  # from one separation to the next
SMALL_STATE = 128  # numbers, up to which a product of Jacobians is formed
REST_SAMPLES, REST_STEPS = 8, 200  # without data: free-running trajectories, and the longest that is simulated


# ---- matrices --------------------------------------------------------------------------------------------------------


def spectral_radius(W: Any) -> float:
    """Largest absolute value of the eigenvalues of W.

    max_i abs(lambda_i(W)). It decides the growth of W^t as t goes to infinity, hence of the gradients of a *linear*
    network. For a tanh network a radius above 1 is neither necessary nor sufficient for exploding gradients.

    Parameters
    ----------
    W : array_like, (n, n)
        A real matrix.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If W is not a square matrix of finite real numbers.

    Examples
    --------
    >>> round(spectral_radius([[8.0, 8.0], [-8.0, -8.0]]), 6)
    0.0
    """
    eigenvalues = np.linalg.eigvals(_matrix("W", W, square=True))
    return float(np.abs(eigenvalues).max(initial=0.0))


def spectral_norm(W: Any) -> float:
    """Largest singular value of W.

    max abs(W v) / abs(v): no vector, and so no gradient, grows by more than this in one multiplication.

    Parameters
    ----------
    W : array_like, (m, n)
        A real matrix.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If W is not a matrix of finite real numbers.

    Examples
    --------
    >>> round(spectral_norm([[8.0, 8.0], [-8.0, -8.0]]), 6)
    16.0
    """
    singular_values = np.linalg.svd(_matrix("W", W), compute_uv=False)
    return float(singular_values.max(initial=0.0))


def henrici(W: Any) -> float:
    """Henrici's departure of W from normality, in the Frobenius norm, not normalised.

    sqrt(|W|_F^2 - sum_i abs(lambda_i)^2): 0 just when W is normal, and then the spectral radius is the spectral norm;
    the larger it is, the more a product with W may grow before the eigenvalues have their way. It is read from the
    Schur form, as the norm of the strictly upper triangle, which keeps the digits that the difference would cancel.

    Parameters
    ----------
    W : array_like, (n, n)
        A real matrix.

    Returns
    -------
    float
        Between 0 and the Frobenius norm of W.

    Raises
    ------
    TypeError, ValueError
        If W is not a square matrix of finite real numbers.

    References
    ----------
    Henrici, "Bounds for iterates, inverses, spectral variation and fields of values of non-normal matrices", 1962.

    Examples
    --------
    >>> round(henrici([[8.0, 8.0], [-8.0, -8.0]]), 6)
    16.0
    """
    from scipy.linalg import schur

    matrix = _matrix("W", W, square=True)
    scale = float(np.abs(matrix).max(initial=0.0))
    if not scale:
        return 0.0
    triangle, _ = schur(matrix / scale, output="complex")  # scaled: squares of the entries may not be representable
    return scale * float(np.linalg.norm(np.triu(triangle, 1)))


def _matrix(name: str, value: Any, *, square: bool = False) -> Array:
    """`value` as a float64 matrix of finite numbers."""
    given = check_reals(name, value)
    if given.ndim != 2 or (square and given.shape[0] != given.shape[1]):
        raise ValueError(f"{name}: expected shape {'(n, n)' if square else '(m, n)'}, got {given.shape}")
    check_room(max(given.shape[0], 1) * max(given.shape[1], 1))
    matrix = given.astype(np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: has {np.count_nonzero(~np.isfinite(matrix))} entries that are NaN or infinite")
    return matrix


# ---- the Jacobian of one step ----------------------------------------------------------------------------------------


class _Trajectory:
    """The Jacobians of one layer and direction along a stored forward pass, d(state after) / d(state before).

    Those of a step and a sample are kept as the diagonals around W_hh that src/jacobian.inc.h names, (D, H) factors.
    `rows` (steps, B) says where the tape has the steps, in the order in which the forward pass took them.
    """

    def __init__(self, layer: Any, tape: Any, index: int, rows: Array) -> None:
        self.layer, self.index, self.rows = layer, index, rows
        self.state_size = layer.hidden_size * _parts(layer)
        self.weight = layer.params["weight_hh" + _suffix(layer, index)].astype(np.float64)
        self._kept = tape.kept[index]
        self._packed: dict[bool, Array] = {}  # by whether transposed
        self._pool = Pool()

    @classmethod
    def whole(cls, layer: Any, tape: Any, index: int, steps: int, samples: int) -> _Trajectory:
        """All steps of all samples, which have the same length."""
        rows = np.arange(steps * samples).reshape(steps, samples)
        return cls(layer, tape, index, rows[::-1] if index % layer.num_directions else rows)

    def factors(self, first: int, end: int) -> Array:
        """(end - first, B, D, H)"""
        rows = np.ascontiguousarray(self.rows[first:end])
        factors = _kernels.jacobian_factors(self.layer._cell, self.layer.hidden_size, rows, *self._kept)
        return factors.reshape(*rows.shape, *factors.shape[1:])

    def steps_at_once(self) -> int:
        """So many have factors of a size that is worth a call, and no burden."""
        return max(1, BLOCK_BYTES // max(1, self.factors(0, 1).nbytes))

    def carry(self, v: Array, factors: Array, *, transposed: bool = False, log_norm: Array | None = None) -> None:
        """v (B, m, P*H) = J v for each step in turn, or J^T v; in place.

        With log_norm (steps, B, m) each step's vectors are scaled to norm 1, and these were ln of their norms.
        """
        packed = self._packed.get(transposed)
        if packed is None:
            packed = _kernels.jacobian_packed(self.layer._cell, transposed, self.weight, self._pool.take)
            self._packed[transposed] = packed
        work = _kernels.jacobian_product(self.layer._cell, transposed, factors, packed, v, log_norm, self._pool.take)
        self._pool.give(work)

    def dense(self, step: int) -> Array:
        """(B, P*H, P*H)"""
        factors = self.factors(step, step + 1)
        v = np.tile(np.eye(self.state_size), (factors.shape[1], 1, 1))
        self.carry(v, factors)
        return np.ascontiguousarray(v.swapaxes(1, 2))


def _norm_bounds(factors: Array, weight_norm: float) -> Array:
    """(steps, B) numbers no smaller than the spectral norms of the Jacobians, given that of the weight.

    Diagonal blocks have the norm of their worst unit's matrix, and the two terms of J that of their sum; but for LSTM,
    where the weights act on h alone and what passes them by comes from c alone, they stand side by side.
    """
    if factors.shape[2] == 1:
        return np.asarray(np.abs(factors[:, :, 0]).max(axis=2) * weight_norm)
    if factors.shape[2] == 4:
        through = np.sqrt(np.square(factors[:, :, :3]).sum(axis=2))
        return np.asarray(through.max(axis=2) * weight_norm + np.abs(factors[:, :, 3]).max(axis=2))
    into_c, o = np.square(factors[:, :, :3]).sum(axis=2), np.square(factors[:, :, 3])
    f, opened = factors[:, :, 4], factors[:, :, 5]
    h, mixed = opened**2 * into_c + o, opened * into_c
    through = (h + into_c) / 2 + np.hypot((h - into_c) / 2, mixed)  # larger eigenvalue of [[h, mixed], [mixed, into_c]]
    past = np.abs(f) * np.hypot(1, opened)
    return np.asarray(np.hypot(np.sqrt(through.max(axis=2)) * weight_norm, past.max(axis=2)))


def _suffix(layer: Any, index: int) -> str:
    """The end of PyTorch's parameter names for layer * num_directions + direction."""
    level, direction = divmod(index, layer.num_directions)
    return f"_l{level}_reverse" if direction else f"_l{level}"


def jacobian(layer: Any, tape: Any, t: int, b: int = 0, *, index: int = 0) -> Array:
    """dh_t / dh_{t-1} of one sample, the derivative of a state by the one before it.

    RNN:  diag(phi'(a)) W.   GRU:  diag(z) + diag((h - n) z (1 - z)) W_z + diag((1 - z) (1 - n^2)) (diag(r) W_n +
    diag(q r (1 - r)) W_r). LSTM: of the state (h, c) stacked, so that the blocks are dh_t/dh, dh_t/dc above dc_t/dh,
    dc_t/dc. In the reverse direction the state before is the one of t + 1.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    tape : the tape of a forward pass of `layer`
    t : int
        Time step, 0 <= t < T, where the sample has not ended.
    b : int
        Sample, 0 <= b < B.
    index : int
        Which layer and direction: layer * num_directions + direction.

    Returns
    -------
    ndarray, (H, H), or (2H, 2H) for LSTM
        float64. Row i, column j: d(unit i at t) / d(unit j before).

    Raises
    ------
    IndexError
        If t, b or index is out of range.
    ValueError
        If the tape is another layer's.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.25], [0.0, 2.0]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> _, tape = layer.forward(np.ones((3, 1, 1), np.float32))
    >>> jacobian(layer, tape, 1)
    array([[0.5 , 0.25],
           [0.  , 2.  ]])
    """
    _own_tape(layer, tape)
    tape.record(index, t, b)  # its errors name what is out of range
    matrix: Array = _Trajectory(layer, tape, index, np.array([[tape._batch.row(t, b)]])).dense(0)[0]
    return matrix


def _recurrent(layer: Any) -> None:
    """Refuse what has no recurrent weights."""
    if not hasattr(layer, "num_directions"):
        raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")


def _own_tape(layer: Any, tape: Any) -> None:
    """Refuse another layer's tape."""
    _recurrent(layer)
    if getattr(tape, "_layer", None) is not layer:
        raise ValueError("tape: expected a tape from this layer's forward")


# ---- what a trajectory of Jacobians does -----------------------------------------------------------------------------


def lyapunov_spectrum(
    layer: Any, x: Array, state: Any = None, *, k: int | None = None, transient: int = 0, index: int | None = None
) -> Array:
    """Lyapunov exponents of the layer driven by x: how fast small changes of its state grow, direction by direction.

    lambda_i = mean_t ln abs(R_t,ii)   with   Q_t R_t = J_t Q_{t-1},   J_t the Jacobian of step t and Q_0 random
    orthonormal. All of them sum to the mean of ln abs det J_t. The largest is the rate at which a gradient grows
    backwards, once many steps have passed; above 0 is chaos forwards and explosion backwards. In a stack every layer
    is driven by the one below and never by one above, so that the joint Jacobian is block triangular: its spectrum, in
    the limit of many steps, is that of the layers together, each along its own trajectory, and that is what is
    computed. Dropout is off.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Of one direction.
    x : ndarray, (T, B, I)
        As in ``layer(x)``: the layer's dtype, (B, T, I) with `batch_first`.
    state : optional
        Initial state, as in ``layer(x, state)``.
    k : int, optional
        How many exponents; all num_layers * H of them (2H for LSTM) unless told. The work grows with k.
    transient : int
        Steps at the beginning that only turn Q and are left out of the mean.
    index : int, optional
        Which layer of a stack alone, whose exponents are H (2H for LSTM); all together unless told.

    Returns
    -------
    ndarray, (k,)
        float64, natural logarithm per step, largest first, averaged over the batch. -inf for a direction that a step
        annihilates; values about 36 below the largest are rounding errors of such directions.

    Raises
    ------
    ValueError
        If the layer is bidirectional (its joint state has no single direction of time), k or transient is out of
        range, the batch is empty or the trajectory is not finite.
    IndexError
        If the index is out of range.

    References
    ----------
    Benettin et al., Meccanica 15, 1980; for recurrent networks Engelken, Wolf, Abbott, "Lyapunov spectra of chaotic
    recurrent neural networks", arXiv 2006.02427.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.0], [0.25, 2.0]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> exponents = lyapunov_spectrum(layer, np.ones((60, 1, 1)), transient=30)
    >>> np.exp(exponents).round(6)
    array([2. , 0.5])
    """
    _recurrent(layer)
    if layer.bidirectional:
        raise ValueError(
            "layer: is bidirectional; its two directions walk through time in opposite orders, so that there is no "
            "joint state whose growth per step could be followed"
        )
    if index is not None:
        index = check_index("index", index, layer.num_layers)
    followed = range(layer.num_layers) if index is None else [index]
    state_size = layer.hidden_size * _parts(layer)
    k = len(followed) * state_size if k is None else check_int("k", k, least=1)
    if k > len(followed) * state_size:
        raise ValueError(f"k: expected at most {len(followed) * state_size}, the size of the state, got {k}")
    transient = check_int("transient", transient)
    tape = _forward(layer, x, state)
    steps, samples = _steps_and_samples(layer, x)
    if not samples or transient >= steps:
        raise ValueError(
            f"x: expected at least 1 sample and more than {transient} steps (transient), got B = {samples}, T = {steps}"
        )
    found = []
    for one in followed:
        start = np.random.default_rng(one).standard_normal((samples, min(k, state_size), state_size))
        trajectory = _Trajectory.whole(layer, tape, one, steps, samples)
        _kernels.jacobian_separate(start, True)
        found.append(_exponents(_finite_steps(trajectory), steps, start, transient).mean(axis=0))
    exponents: Array = np.sort(np.concatenate(found))[::-1][:k]
    return exponents


def singular_values(
    layer: Any, tape: Any, k: int = 1, *, horizon: int | None = None, b: int = 0, index: int = 0
) -> Array:
    r"""How much a gradient can grow over many steps: ln of the largest singular values of their Jacobians' product.

    :math:`\ln \sigma_i(J_{t} J_{t-1} \cdots J_{t-n+1})` of one sample, t its last step. The first is the most by which
    any gradient by the last state can have grown on its way back over n steps, the sharpest bound there is; divided by
    n it comes to the largest Lyapunov exponent as n grows. SciPy's Lanczos iteration asks for products with vectors and
    never for the matrix, but for small states, where that is formed and decomposed.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    tape : the tape of a forward pass of `layer`
    k : int
        How many, 1 to H, or 2H for LSTM.
    horizon : int, optional
        n, the number of steps, up to those that the sample has; all of them by default.
    b : int
        Sample, 0 <= b < B.
    index : int
        Which layer and direction: layer * num_directions + direction. In the reverse direction the last step is t = 0.

    Returns
    -------
    ndarray, (k,)
        float64, natural logarithms, largest first; -inf for 0. Those that lie more than 30 below the first are lost in
        its rounding errors.

    Raises
    ------
    IndexError
        If b or index is out of range.
    TypeError, ValueError
        If the tape is another layer's, k or horizon is out of range, or the forward pass is not finite.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.0], [0.0, 2.0]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> _, tape = layer.forward(np.ones((20, 1, 1), np.float32))
    >>> singular_values(layer, tape, 2, horizon=10) / np.log(2)
    array([ 10., -10.])
    """
    _own_tape(layer, tape)
    tape.record(index, 0, b)  # its errors name what is out of range
    rows = tape._batch.rows_of(b)[:, None]
    horizon = len(rows) if horizon is None else check_int("horizon", horizon, least=1)
    if horizon > len(rows):
        raise ValueError(f"horizon: expected at most {len(rows)}, the steps of sample {b}, got {horizon}")
    walk = rows[::-1] if index % layer.num_directions else rows
    trajectory = _Trajectory(layer, tape, index, walk[-horizon:])
    n = trajectory.state_size
    if check_int("k", k, least=1) > n:
        raise ValueError(f"k: expected at most {n}, the size of the state, got {k}")
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
    # of the product with the right singular vectors, because Lanczos has worked with its square
    found = np.linalg.svd(product.rows(basis), compute_uv=False)[:k]
    return np.asarray(_log(found) + product.log_scale)


class _Product:
    """The product of all Jacobians of a trajectory of one sample, divided by a number so large that it can be held."""

    def __init__(self, trajectory: _Trajectory) -> None:
        self._trajectory = trajectory
        self._factors = trajectory.factors(0, len(trajectory.rows))  # (n, 1, D, H)
        if not np.isfinite(self._factors).all():
            raise ValueError("tape: the forward pass is not finite; a product of Jacobians needs a finite trajectory")
        probe = np.random.default_rng(0).standard_normal((1, 1, trajectory.state_size))
        log_norm = np.empty((len(self._factors), 1, 1))
        trajectory.carry(probe / np.linalg.norm(probe), self._factors, log_norm=log_norm)
        self.log_scale = float(log_norm.sum())
        if math.isfinite(self.log_scale):
            # all factors are what a Jacobian is linear in, but LSTM's last, through which h' has the new c'
            self._factors[:, :, :5] *= np.exp(-log_norm)[..., None]

    @cached_property
    def _back(self) -> Array:
        return np.ascontiguousarray(self._factors[::-1])

    def rows(self, v: Array) -> Array:
        """The product times each row of v (m, P*H)."""
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
    r"""How many dimensions the neighbours of a trajectory come to fill: Kaplan and Yorke, from its whole spectrum.

    :math:`k + \sum_{i \le k} \lambda_i / |\lambda_{k+1}|` with k the most exponents whose sum, largest first, is not
    negative. 0 where all of them are negative, n where all n sum to at least 0.

    Parameters
    ----------
    exponents : array_like, (n,)
        In any order; -inf is allowed.

    Returns
    -------
    float
        Between 0 and n.

    Raises
    ------
    TypeError, ValueError
        If the exponents are not a vector of real numbers, or one of them is NaN or inf.

    References
    ----------
    Kaplan and Yorke, "Chaotic behavior of multidimensional difference equations", 1979.

    Examples
    --------
    >>> round(kaplan_yorke([0.5, 0.0, -2.0]), 6)
    2.25
    """
    ordered = _spectrum(exponents)
    if np.abs(ordered).max(initial=0.0, where=np.isfinite(ordered)) > 1e290:  # the dimension is that of all over 2**100
        ordered = ordered * 2.0**-100
    sums = np.cumsum(ordered)
    k = int(np.count_nonzero(np.logical_and.accumulate(sums >= 0)))
    return float(k) if k in (0, len(ordered)) else k + float(sums[k - 1] / -ordered[k])


def entropy(exponents: Any) -> float:
    """The entropy a chaotic trajectory makes in a step, at most: the sum of the positive Lyapunov exponents.

    sum_i max(lambda_i, 0), in nats per step; it bounds the Kolmogorov-Sinai entropy, and is it where Pesin's identity
    holds.

    Parameters
    ----------
    exponents : array_like, (n,)
        As for `kaplan_yorke`; enough of the largest to have all that are positive.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        As for `kaplan_yorke`.

    References
    ----------
    Engelken, Wolf, Abbott, "Lyapunov spectra of chaotic recurrent neural networks", arXiv 2006.02427.

    Examples
    --------
    >>> entropy([0.5, 0.25, -2.0])
    0.75
    """
    with np.errstate(over="ignore"):
        return float(np.maximum(_spectrum(exponents), 0.0).sum())


def _spectrum(exponents: Any) -> Array:
    """Exponents in float64, largest first."""
    given = check_reals("exponents", exponents)
    if given.ndim != 1:
        raise ValueError(f"exponents: expected shape (n,), got {given.shape}")
    wrong = np.flatnonzero(np.isnan(given) | np.isposinf(given))
    if wrong.size:
        raise ValueError(f"exponents: expected finite numbers or -inf, got {given[wrong[0]]} at position {wrong[0]}")
    return np.sort(given.astype(np.float64))[::-1]


def _finite_steps(trajectory: _Trajectory) -> Callable[[Array, int, int], None]:
    """What `_exponents` wants."""

    def carry(v: Array, first: int, end: int) -> None:
        factors = trajectory.factors(first, end)
        finite = np.isfinite(factors).all(axis=(1, 2, 3))
        if not finite.all():
            step = first + int(np.argmin(finite))
            raise ValueError(f"x: the forward pass is not finite at step {step}; exponents need a finite trajectory")
        trajectory.carry(v, factors)

    return carry


def _exponents(carry: Callable[[Array, int, int], None], steps: int, v: Array, transient: int) -> Array:
    """(B, k) exponents of a product of matrices over the steps from `transient` on.

    v (B, k, n) are k orthonormal rows, and carry(v, first, end) multiplies them by the matrices of these steps, in
    place.

    The R of many steps is the product of triangular factors of a few, whatever these are, as long as what they leave of
    v spans the same: LU with pivots costs a third of QR, which only the first and the last step need. In between as
    many steps are taken as let no row drown in the others' rounding errors. LAPACK is left out, whose threads would
    keep the kernels' waiting, and these theirs.
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
    """How far steps have driven vectors apart, or to the ends of a double's range; those that are 0 don't count."""
    alive = ~gone
    high, low = logs.max(axis=1, where=alive, initial=-np.inf), logs.min(axis=1, where=alive, initial=np.inf)
    with np.errstate(invalid="ignore"):  # of what has overflowed, or has just become 0
        apart = np.maximum((high - low).max(), np.abs(logs).max(where=alive, initial=0.0) / 20)
    return math.inf if np.isnan(apart) else float(apart)


@dataclass(frozen=True)
class Condition:
    """A statement about a layer's growth, and what follows from it.

    Attributes
    ----------
    name : str
        What is compared.
    value, limit : float
        The condition holds where the value is above the limit (`of` "explodes") or below it (`of` "vanishes").
    kind : {"necessary", "sufficient", "asymptotic"}
        Necessary: without it a gradient cannot do what `of` says. Sufficient: with it the gradient is certain to, given
        enough steps. Asymptotic: an estimate for many steps along trajectories like these, no bound.
    of : {"explodes", "vanishes"}
        What the condition is about.
    holds : bool
    meaning : str
        One sentence.
    """

    name: str
    value: float
    limit: float
    kind: Kind
    of: Verdict
    holds: bool
    meaning: str


@dataclass(frozen=True)
class LayerGrowth:
    """The forecast of one layer and direction.

    Attributes
    ----------
    name : str
        "l0", "l1_reverse", ..., the end of the parameters' names.
    index : int
        layer * num_directions + direction, the row in the telemetry.
    rate : float
        Growth of a gradient carried back by this layer's own recurrence; natural logarithm per step.
    rate_with_above : float
        The largest rate of this layer and of those above it, whose gradients arrive here too: what telemetry comes to
        show.
    upper_bound : float
        No smaller than `rate`.
    verdict : {"explodes", "vanishes", "stable"}
    log_norm : ndarray, (steps + 1,)
        The forecast itself: ln of the norm over batch and units after 0, 1, ... steps back, beginning at 0.
    conditions : tuple of Condition
    """

    name: str
    index: int
    rate: float
    rate_with_above: float
    upper_bound: float
    verdict: Verdict
    log_norm: Array
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class GrowthPrediction:
    """What `predict_growth` returns.

    Attributes
    ----------
    rate : float
        The largest rate of all layers and directions; natural logarithm per step, going backwards in time.
    factor : float
        exp(rate * horizon): by how much the gradient's norm changes over the horizon, at that rate.
    verdict : {"explodes", "vanishes", "stable"}
        Stable within 1 % a step and within a factor of 10 over the horizon. "vanishes" means in every layer.
    upper_bound : float
        No smaller than `rate`: for RNN ln of the spectral norm of weight_hh, whatever the input; for GRU and LSTM a
        bound along these trajectories.
    horizon : int
        As given.
    basis : str
        Which trajectories were followed.
    conditions : tuple of Condition
        Those of the layer with the largest rate.
    layers : tuple of LayerGrowth
        By layer * num_directions + direction.
    """

    rate: float
    factor: float
    verdict: Verdict
    upper_bound: float
    horizon: int
    basis: str
    conditions: tuple[Condition, ...]
    layers: tuple[LayerGrowth, ...]


def predict_growth(layer: Any, x: Array | None = None, *, horizon: int) -> GrowthPrediction:
    """Forecast the growth per step of gradients that travel back through a recurrent layer.

    Random gradients dL/dh at the last step are carried back by the transposed Jacobians of real trajectories, without a
    loss and without touching `layer.grads`; the rate is the least-squares slope of

        ln sqrt(mean over samples of |J_{T-s+1}^T ... J_T^T u|^2),   s = 0 ... min(horizon, T - 1)

    averaged over random u. It is what `measure_growth` measures after a backward pass with a gradient at the last
    step, and tends to the largest Lyapunov exponent as the horizon grows. For LSTM the norm is that of (dL/dh,
    dL/dc). Every layer and direction is carried by its own recurrence. Where a forward pass overflows, only the steps
    before count.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Dropout is off.
    x : ndarray, (T, B, I), optional
        Data like those to come, T >= 2. Without it the forecast is from the weights alone: the layer runs freely,
        with x = 0, for up to 200 steps from 8 random states of standard deviation 1/2, biases included. Input usually
        saturates units and lowers the rate.
    horizon : int
        How many steps back, at least 1.

    Returns
    -------
    GrowthPrediction

    Raises
    ------
    ValueError
        If there is no sample, fewer than two steps, or no finite trajectory.

    References
    ----------
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013, section 2 (the
    conditions, with singular values).

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    >>> layer.params["weight_hh_l0"][...] = [[1.25, 0.0], [0.0, 1.25]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> forecast = predict_growth(layer, np.ones((50, 4, 1)), horizon=50)
    >>> print(f"{forecast.verdict}, {np.exp(forecast.rate):.4f} a step, at most {np.exp(forecast.upper_bound):.4f}")
    explodes, 1.2500 a step, at most 1.2500
    """
    _recurrent(layer)
    horizon = check_int("horizon", horizon, least=1)
    if x is None:
        basis = "free-running trajectories, x = 0"
        x, state = _rest(layer, min(horizon, REST_STEPS) + 1)
    else:
        basis, state = "trajectories driven by x", None
    tape = _forward(layer, x, state)
    steps, samples = _steps_and_samples(layer, x)
    if not samples or steps < 2:
        raise ValueError(f"x: expected at least 1 sample and 2 steps, got B = {samples}, T = {steps}")
    curves = [
        _carried_back(_Trajectory.whole(layer, tape, index, steps, samples), horizon)
        for index in range(layer.num_layers * layer.num_directions)
    ]
    rates = [_slope(log_norm) for log_norm, _ in curves]
    layers = []
    for index, (log_norm, log_bound) in enumerate(curves):
        rate = rates[index]
        above = rates[index - index % layer.num_directions + layer.num_directions :]
        bound, conditions = _conditions(layer, index, rate, _slope(log_bound))
        layers.append(
            LayerGrowth(
                name=_suffix(layer, index)[1:],
                index=index,
                rate=rate,
                rate_with_above=max([rate, *above]),
                upper_bound=bound,
                verdict=_verdict(rate, horizon),
                log_norm=log_norm,
                conditions=conditions,
            )
        )
    worst = max(layers, key=lambda growth: growth.rate)
    return GrowthPrediction(
        rate=worst.rate,
        factor=_exp(worst.rate * horizon),
        verdict=worst.verdict,
        upper_bound=max(growth.upper_bound for growth in layers),
        horizon=horizon,
        basis=basis,
        conditions=worst.conditions,
        layers=tuple(layers),
    )


def measure_growth(tape: Any, *, index: int | None = None) -> float:
    """The growth per step that a backward pass has shown: the slope of ln |dL/dh_t| against the steps back.

    The least-squares slope of ln `tape.telemetry.dh_norm`, in the order in which the gradient travelled: from the
    last step to the first, and the other way in the reverse direction. It measures what the recurrence does to a
    gradient where the loss acts on the last step only. Where it acts on every step, dL/dh_t is the sum of what has
    come from all later ones: growth shows all the same, since the oldest part outgrows the rest, but a gradient that
    vanishes shows a slope near 0.

    Parameters
    ----------
    tape : the tape of a forward pass of RNN, LSTM or GRU, after `layer.backward(tape, dy)`
    index : int, optional
        layer * num_directions + direction; the largest slope of all of them unless told.

    Returns
    -------
    float
        Natural logarithm per step. Left out are the steps before the gradient first appears and those after it has
        overflowed or begun to underflow; inf or -inf where that leaves a single step, -inf where the gradient becomes
        exactly zero in one step. NaN where there is no gradient, where it is not finite to begin with, or where the
        forward pass was not.

    Raises
    ------
    ValueError
        If there has been no backward pass.
    IndexError
        If the index is out of range.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[1.25, 0.0], [0.0, 1.25]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> y, tape = layer.forward(np.ones((50, 4, 1), np.float32))
    >>> dy = np.zeros_like(y)
    >>> dy[-1] = 1
    >>> _ = layer.backward(tape, dy)
    >>> round(float(np.exp(measure_growth(tape))), 6)
    1.25
    """
    travelled = _travelled(tape, index)
    if not np.isfinite(tape.state).all():
        return math.nan
    tiny = float(np.finfo(tape._layer.dtype).tiny)
    slopes = [_measured(norms, tiny) for norms in travelled]
    return max((slope for slope in slopes if not math.isnan(slope)), default=math.nan)


def effective_horizon(tape: Any, eps: float = 0.01, *, index: int | None = None) -> int:
    """How many steps back a gradient still reaches: over so many at least `eps` of its norm was left.

    The largest j with |dL/dh_{t-j}| >= eps |dL/dh_t|, t being the step where the gradient first appears; in the
    reverse direction with t + j. What lies further back can hardly be learned from. As `measure_growth` it says what
    the recurrence does where the loss acts on the last step only.

    Parameters
    ----------
    tape : the tape of a forward pass of RNN, LSTM or GRU, after `layer.backward(tape, dy)`
    eps : float
        What counts as vanished, above 0 and at most 1.
    index : int, optional
        layer * num_directions + direction; the farthest reach of all of them unless told.

    Returns
    -------
    int
        0 to T - 1. 0 where there is no gradient; one that is not finite counts as having reached.

    Raises
    ------
    TypeError, ValueError
        If there has been no backward pass, or eps is out of range.
    IndexError
        If the index is out of range.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.0], [0.0, 0.5]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> y, tape = layer.forward(np.ones((50, 4, 1), np.float32))
    >>> dy = np.zeros_like(y)
    >>> dy[-1] = 1
    >>> _ = layer.backward(tape, dy)
    >>> effective_horizon(tape, eps=0.01)  # 2^-6 is left over 6 steps, 2^-7 is below 0.01
    6
    """
    eps = check_number("eps", eps, above=0.0, most=1.0)
    reaches = [0]
    for travelled in _travelled(tape, index):
        norms = travelled[int(np.argmax(travelled != 0)) :]
        if norms[0] != 0:
            reaches.append(int(np.flatnonzero(~(norms < eps * norms[0]))[-1]))
    return max(reaches)


def _travelled(tape: Any, index: int | None) -> list[Array]:
    """|dL/dh_t| of one or of each layer and direction, in the order in which the gradient travelled."""
    telemetry = getattr(tape, "telemetry", None)
    if telemetry is None:
        raise ValueError("tape: has no telemetry yet; call layer.backward(tape, dy) first")
    norms, directions = telemetry.dh_norm, tape._layer.num_directions
    if index is not None:
        index = check_index("index", index, len(norms))
    which = range(len(norms)) if index is None else [index]
    return [norms[i] if i % directions else norms[i, ::-1] for i in which]


def _measured(norms: Array, tiny: float) -> float:
    """The slope of ln norms, listed in the order in which the gradient travelled."""
    norms = norms[int(np.argmax(norms != 0)) :]
    trusted = (norms > 1e3 * tiny) & (norms < math.inf)  # closer to the smallest normal number entries underflow
    count = len(norms) if trusted.all() else int(np.argmin(trusted))
    if not count or (count == 1 and (len(norms) == 1 or math.isnan(norms[1]))):
        return math.nan
    if count < len(norms) and norms[count] == 0 and norms[count - 1] > 1e9 * tiny:
        return -math.inf
    if count == 1:
        return math.inf if norms[1] > norms[0] else -math.inf
    return _slope(np.log(norms[:count]))


def _steps_and_samples(layer: Any, x: Array) -> tuple[int, int]:
    first, second = np.shape(x)[:2]
    return (second, first) if layer.batch_first else (first, second)


def _parts(layer: Any) -> int:
    """How many arrays of H make the state: 2 for LSTM, whose weights have 4 gates, else 1."""
    return 2 if len(layer.params["weight_hh_l0"]) == 4 * layer.hidden_size else 1


def _forward(layer: Any, x: Array, state: Any) -> Any:
    """The tape of a forward pass without dropout; the layer itself is left alone."""
    plain = copy.copy(layer)
    plain.dropout = 0.0
    return plain.forward(x, state)[1]


def _rest(layer: Any, steps: int) -> tuple[Array, Any]:
    """Zero input and random initial states."""
    rng = np.random.default_rng(0)
    shape = (layer.num_layers * layer.num_directions, REST_SAMPLES, layer.hidden_size)
    parts = [(rng.standard_normal(shape) / 2).astype(layer.dtype) for _ in range(_parts(layer))]
    first = (REST_SAMPLES, steps) if layer.batch_first else (steps, REST_SAMPLES)
    return np.zeros((*first, layer.input_size), layer.dtype), parts[0] if len(parts) == 1 else tuple(parts)


def _carried_back(trajectory: _Trajectory, horizon: int) -> tuple[Array, Array]:
    """(n + 1,) each, from the last finite step back: ln of the norm of random gradients, and of a bound on it."""
    end, samples = trajectory.rows.shape
    while end and not np.isfinite(trajectory.factors(end - 1, end)).all():
        end -= 1
    if end < 2:
        raise ValueError(f"x: a forecast needs 2 steps, and the forward pass is finite for {end} only")
    layer, weight_norm = trajectory.layer, spectral_norm(trajectory.weight)
    vectors = np.zeros((samples, -(-PROBES // samples), trajectory.state_size))
    into_h = vectors[:, :, : layer.hidden_size]
    into_h[...] = np.random.default_rng(trajectory.index).standard_normal(into_h.shape)
    start = np.linalg.norm(vectors, axis=2)
    vectors /= start[:, :, None]
    log_norms, log_bounds = [np.log(start)[None]], [np.zeros(1)]
    first, most = max(1, end - horizon), trajectory.steps_at_once()
    while end > first:
        n = min(most, end - first)
        factors = np.ascontiguousarray(trajectory.factors(end - n, end)[::-1])
        log_norm = np.empty((n, *vectors.shape[:2]))
        trajectory.carry(vectors, factors, transposed=True, log_norm=log_norm)
        log_norms.append(log_norm)
        log_bounds.append(_log(_norm_bounds(factors, weight_norm).max(axis=1)))
        end -= n
    log_norm = _log_mean_norm(np.cumsum(np.concatenate(log_norms), axis=0))
    return log_norm - log_norm[0], np.cumsum(np.concatenate(log_bounds))


def _log_mean_norm(log_norm: Array) -> Array:
    """(n, B, m) -> (n,) ln of the root mean square over the samples, averaged over the m."""
    mean_square = np.logaddexp.reduce(2 * log_norm, axis=1) - math.log(log_norm.shape[1])
    return np.asarray(mean_square.mean(axis=1) / 2)


def _slope(logs: Array) -> float:
    """Least-squares slope of logs at 0, 1, 2, ...; -inf when a gradient ends on the way."""
    if np.isneginf(logs).any():
        return -math.inf
    back = np.arange(len(logs)) - (len(logs) - 1) / 2
    return float(back @ logs / (back @ back))


def _verdict(rate: float, horizon: int) -> Verdict:
    margin = min(STABLE_RATE, math.log(STABLE_FACTOR) / horizon)
    return "explodes" if rate > margin else "vanishes" if rate < -margin else "stable"


def _conditions(layer: Any, index: int, rate: float, trajectory_bound: float) -> tuple[float, tuple[Condition, ...]]:
    """The bound on the rate of this layer and direction, and what can be said of it; the only place that says it."""

    def compare(name: str, value: float, limit: float, says: tuple[Kind, Verdict], meaning: str) -> Condition:
        kind, of = says
        return Condition(name, value, limit, kind, of, value > limit if of == "explodes" else value < limit, meaning)

    needed: tuple[Kind, Verdict] = ("necessary", "explodes")
    enough: tuple[Kind, Verdict] = ("sufficient", "vanishes")
    in_the_limit: tuple[Kind, Verdict] = ("asymptotic", "explodes")

    growth = compare(
        "growth along the trajectories, ln per step", rate, 0.0, in_the_limit,
        "An estimate for data like these: an average over the states visited, not a property of the weights alone.",
    )  # fmt: skip
    weight = layer.params["weight_hh" + _suffix(layer, index)]
    if len(weight) > layer.hidden_size:  # gated
        name = "bound on the Jacobians along the trajectories, ln per step"
        return trajectory_bound + ROUNDING, (
            compare(
                name, trajectory_bound, 0.0, needed, "Unless it holds, no gradient grows along these trajectories."
            ),
            compare(name, trajectory_bound, 0.0, enough, "If it holds, every gradient vanishes along them."),
            growth,
        )
    # abs(phi') is at most gamma = 1 for tanh and relu.
    norm, radius = spectral_norm(weight), spectral_radius(weight)
    return float(_log(norm)) + ROUNDING, (
        compare("spectral norm of weight_hh", norm, 1.0, needed, "Unless it holds, no input makes a gradient grow."),
        compare("spectral norm of weight_hh", norm, 1.0, enough, "If it holds, every gradient vanishes on any input."),
        compare(
            "spectral radius of weight_hh", radius, 1.0, in_the_limit,
            "Decides for a linear network and many steps only; for this one it is neither necessary nor sufficient.",
        ),
        growth,
    )  # fmt: skip


def _log(value: Any) -> Any:
    """ln, -inf at 0 without a warning."""
    with np.errstate(divide="ignore"):
        return np.log(value)


def _exp(exponent: float) -> float:
    """exp, inf where it overflows."""
    return math.exp(exponent) if exponent < 709.0 else math.inf
