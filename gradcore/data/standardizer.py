"""Mean 0 and standard deviation 1, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradcore._base.check import (
    FLOAT32,
    FLOAT64,
    Array,
    as_array,
    check_array,
    check_names,
    check_reals,
    check_room,
    describe_shape,
)

__all__ = ["Standardizer"]

CONSTANT = 1e-12  # a series whose standard deviation is at most this share of its largest value does not vary


def center_and_scale(values: Array, weight: Array | None = None) -> tuple[float, float]:
    """Return mean and standard deviation of what is finite; 0 of one that does not vary. Squares may overflow."""
    counts = np.isfinite(values)
    known = values[counts].astype(FLOAT64)
    weight = None if weight is None or not known.size else weight[counts]
    largest = float(np.abs(known).max(initial=0.0)) or 1.0
    scaled = known / largest
    mean = float(np.average(scaled, weights=weight)) if known.size else 0.0
    deviation = math.sqrt(np.average(np.square(scaled - mean), weights=weight)) if known.size else 0.0
    if not deviation > CONSTANT * float(np.abs(scaled).max(initial=0.0)):
        deviation = 0.0
    return mean * largest, deviation * largest


class Standardizer:
    """Shift and scale each feature to mean 0 and standard deviation 1: (x - mean) / std.

    Fit it on what a model is trained on, never on what it is judged by. What is missing (NaN or infinite) does not
    count and stays missing. A feature that does not vary is only shifted.

    Attributes
    ----------
    mean, std : ndarray, (F,), float64, or None
        The means and standard deviations, 1 where a feature does not vary; None before `fit`.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> series = np.float32([[1, 10], [3, 10], [np.nan, 10], [5, 10]])
    >>> standardizer = gradcore.data.Standardizer().fit(series[:3])
    >>> scaled = standardizer.transform(series)
    >>> scaled
    array([[-1.,  0.],
           [ 1.,  0.],
           [nan,  0.],
           [ 3.,  0.]], dtype=float32)
    >>> standardizer.inverse_transform(scaled)[-1]
    array([ 5., 10.], dtype=float32)
    """

    def __init__(self) -> None:
        self.mean: Array | None = None
        self.std: Array | None = None

    def fit(self, x: Any, *, weight: Any = None) -> Standardizer:
        """Find mean and standard deviation of each feature.

        Parameters
        ----------
        x : ndarray, (..., F), or (n,) for one feature
            What the model is trained on, float32 or float64.
        weight : array_like, of the shape of x but for F, optional
            How often each row counts, at least 0; where it is 0 the row is left out.

        Returns
        -------
        Standardizer
            Itself.

        Raises
        ------
        TypeError, ValueError
            If x has another dtype, or no axis, or the weights do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.data import Standardizer
        >>> Standardizer().fit(np.array([1.0, 3.0])).mean
        array([2.])
        >>> Standardizer().fit(np.array([1.0, 3.0]), weight=[1, 3]).mean
        array([2.5])
        """
        given = _reals("x", x)
        if not given.ndim:
            raise ValueError("x: expected shape (n,) or (..., F), got ()")
        rows = given[:, None] if given.ndim == 1 else given
        if weight is not None:
            weight = check_reals("weight", weight)
            if weight.shape != rows.shape[:-1]:
                raise ValueError(f"weight: expected shape {describe_shape(rows.shape[:-1])}, got {weight.shape}")
            if not ((weight >= 0) & (weight < np.inf)).all():
                raise ValueError("weight: expected finite numbers of at least 0")
            rows, weight = rows[weight > 0], weight[weight > 0]
        found = [center_and_scale(rows[..., k], weight) for k in range(rows.shape[-1])]
        self.mean = np.array([mean for mean, _ in found], FLOAT64)
        self.std = np.array([std or 1.0 for _, std in found], FLOAT64)
        return self

    def transform(self, x: Any) -> Array:
        """Return x, standardized.

        Parameters
        ----------
        x : ndarray, (..., F), or of any shape for one feature
            The data, float32 or float64.

        Returns
        -------
        ndarray, like x
            (x - mean) / std, of the dtype of x.

        Raises
        ------
        TypeError, ValueError
            If x has another dtype or number of features.
        RuntimeError
            If there was no `fit`.
        """
        given, mean, std = self._fitted(x)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(((given - mean) / std).astype(given.dtype))

    def inverse_transform(self, x: Any) -> Array:
        """Return what `transform` has made into x.

        Parameters
        ----------
        x : ndarray, (..., F), or of any shape for one feature
            Standardized data, such as what a model forecasts, float32 or float64.

        Returns
        -------
        ndarray, like x
            The product with std, plus mean, of the dtype of x.

        Raises
        ------
        TypeError, ValueError
            If x has another dtype or number of features.
        RuntimeError
            If there was no `fit`.
        """
        given, mean, std = self._fitted(x)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray((given * std + mean).astype(given.dtype))

    def _fitted(self, x: Any) -> tuple[Array, Array, Array]:
        if self.mean is None or self.std is None:
            raise RuntimeError("Standardizer: expected a call of fit first")
        given, F = _reals("x", x), len(self.mean)
        check_room(math.prod(max(n, 1) for n in given.shape))
        if F != 1 and given.shape[-1:] != (F,):
            raise ValueError(f"x: expected shape {describe_shape(('...', F))}, got {given.shape}")
        return (given, self.mean, self.std) if F != 1 else (given, self.mean[0], self.std[0])

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of mean and standard deviation, for `save_checkpoint`.

        Returns
        -------
        dict of str to ndarray
            `mean` and `std`; empty before `fit`.
        """
        return {} if self.mean is None or self.std is None else {"mean": self.mean.copy(), "std": self.std.copy()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; change nothing unless it fits.

        Parameters
        ----------
        state_dict : mapping of str to ndarray
            `mean` and `std`, or nothing.

        Raises
        ------
        KeyError
            If a name is missing or unknown.
        TypeError, ValueError
            If a value has the wrong dtype or shape.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.data import Standardizer
        >>> other = Standardizer()
        >>> other.load_state_dict(Standardizer().fit(np.array([1.0, 3.0])).state_dict())
        >>> other.transform(np.array([4.0]))
        array([2.])
        """
        nothing = isinstance(state_dict, Mapping) and not state_dict
        check_names("state_dict", state_dict, [] if nothing else ["mean", "std"])
        if nothing:
            self.mean = self.std = None
            return
        mean = check_array("state_dict['mean']", state_dict["mean"], FLOAT64, ("F",))
        std = check_array("state_dict['std']", state_dict["std"], FLOAT64, mean.shape)
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise ValueError("state_dict: expected finite means, and standard deviations above 0")
        self.mean, self.std = mean.copy(), std.copy()

    def __repr__(self) -> str:
        return f"Standardizer({'' if self.mean is None else f'features={len(self.mean)}'})"


def _reals(name: str, value: Any) -> Array:
    given = as_array(name, value)
    if given.dtype not in (FLOAT32, FLOAT64):
        raise TypeError(f"{name}: expected float32 or float64, got {given.dtype}")
    return given
