"""What one matrix says about growth: spectral radius, spectral norm, departure from normality."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore._base.check import Array, check_reals, check_room

__all__ = ["henrici", "spectral_norm", "spectral_radius"]


def spectral_radius(W: Any) -> float:
    r"""Return the largest absolute value of the eigenvalues of W.

    :math:`\max_i |\lambda_i(W)|` decides how W^t grows as t goes to infinity, and so how the gradients of a *linear*
    network grow. For a tanh network a radius above 1 is neither necessary nor sufficient for exploding gradients.

    Parameters
    ----------
    W : array_like, (n, n)
        A real matrix.

    Returns
    -------
    float
        The spectral radius, at most the spectral norm.

    Raises
    ------
    TypeError, ValueError
        If W is not a square matrix of finite real numbers.

    Examples
    --------
    >>> from gradcore import spectral
    >>> round(spectral.spectral_radius([[8.0, 8.0], [-8.0, -8.0]]), 6)
    0.0
    """
    eigenvalues = np.linalg.eigvals(_check_matrix("W", W, square=True))
    return float(np.abs(eigenvalues).max(initial=0.0))


def spectral_norm(W: Any) -> float:
    r"""Return the largest singular value of W.

    :math:`\max_v |W v| / |v|`: one multiplication with W makes no vector, and so no gradient, grow by more than this.

    Parameters
    ----------
    W : array_like, (m, n)
        A real matrix.

    Returns
    -------
    float
        The spectral norm.

    Raises
    ------
    TypeError, ValueError
        If W is not a matrix of finite real numbers.

    Examples
    --------
    >>> from gradcore import spectral
    >>> round(spectral.spectral_norm([[8.0, 8.0], [-8.0, -8.0]]), 6)
    16.0
    """
    singular_values = np.linalg.svd(_check_matrix("W", W), compute_uv=False)
    return float(singular_values.max(initial=0.0))


def henrici(W: Any) -> float:
    r"""Return Henrici's departure of W from normality, in the Frobenius norm.

    :math:`\sqrt{|W|_F^2 - \sum_i |\lambda_i|^2}` is 0 if and only if W is normal, and then the spectral radius is the
    spectral norm. The larger it is, the more products with W may grow before the eigenvalues take over. It is computed
    as the norm of the strictly upper triangle of the Schur form, because the difference would cancel.

    Parameters
    ----------
    W : array_like, (n, n)
        A real matrix.

    Returns
    -------
    float
        The departure, between 0 and the Frobenius norm of W.

    Raises
    ------
    TypeError, ValueError
        If W is not a square matrix of finite real numbers.

    References
    ----------
    Henrici, "Bounds for iterates, inverses, spectral variation and fields of values of non-normal matrices", 1962.

    Examples
    --------
    >>> from gradcore import spectral
    >>> round(spectral.henrici([[8.0, 8.0], [-8.0, -8.0]]), 6)
    16.0
    """
    from scipy.linalg import schur

    matrix = _check_matrix("W", W, square=True)
    scale = float(np.abs(matrix).max(initial=0.0))
    if not scale:
        return 0.0
    triangle, _ = schur(matrix / scale, output="complex")  # scaled: squares of the entries may not be representable
    return scale * float(np.linalg.norm(np.triu(triangle, 1)))


def _check_matrix(name: str, value: Any, *, square: bool = False) -> Array:
    """Return `value` as a float64 matrix of finite numbers."""
    given = check_reals(name, value)
    if given.ndim != 2 or (square and given.shape[0] != given.shape[1]):
        raise ValueError(f"{name}: expected shape {'(n, n)' if square else '(m, n)'}, got {given.shape}")
    check_room(max(given.shape[0], 1) * max(given.shape[1], 1))
    matrix = given.astype(np.float64)
    wrong = np.count_nonzero(~np.isfinite(matrix))
    if wrong:
        raise ValueError(f"{name}: expected finite numbers, got {wrong} of {matrix.size} entries NaN or infinite")
    return matrix
