"""Averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from gradcore import _kernels
from gradcore._base.check import Array, check_array, check_bool, check_int, check_names, check_number
from gradcore._base.hook import Hook, TrainingStep
from gradcore.layers.layer import Layer

__all__ = ["EMA"]


class EMA(Hook):
    r"""Keep an exponential moving average of a model's weights, often better than the last ones [1]_.

    Each step of the optimizer is followed by :math:`a \leftarrow d\, a + (1 - d)\, p` for all parameters p, in one pass
    over the flat buffer. The average starts from the parameters at construction. Pass it to `fit` or `training_step` as
    one of the `hooks`; in a loop of your own, call `update` after each step.

    Parameters
    ----------
    model : Layer
        The layer or model.
    decay : float
        The factor d, from 0 to 1: it averages over about 1 / (1 - d) steps.
    warmup : bool
        Whether to begin with a smaller factor, :math:`\min(d, (1 + t) / (10 + t))` in update t = 0, 1, ..., so that the
        weights at the start are soon forgotten.

    Attributes
    ----------
    n_updates : int
        The number of updates.

    Raises
    ------
    TypeError, ValueError
        If the model is no layer, or a number is out of range.

    Notes
    -----
    The average has the dtype of the parameters, and the same bits for any number of threads. What is no parameter, such
    as the running statistics of `BatchNorm`, is the newest. A step that the optimizer skips is no update. After a layer
    has joined a model, construct a new average from the model.

    References
    ----------
    .. [1] B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging", 1992.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Linear(1, 1, bias=False, dtype=np.float64)
    >>> model.params["weight"] = np.array([[1.0]])
    >>> ema = gradcore.optim.EMA(model, decay=0.75)
    >>> model.params["weight"] = np.array([[5.0]])
    >>> ema.update()
    >>> with ema.applied():
    ...     print(model(np.ones((1, 1))))
    [[2.]]
    >>> model(np.ones((1, 1)))
    array([[5.]])
    """

    def __init__(self, model: Layer, decay: float = 0.999, *, warmup: bool = False) -> None:
        if not isinstance(model, Layer):
            raise TypeError(f"model: expected a layer or model, got {type(model).__name__}")
        self._model, self.n_updates, self._swapped = model, 0, False
        self._decay = check_number("decay", decay, least=0.0, most=1.0)
        self._warmup = check_bool("warmup", warmup)
        self._average: Array = model.flat_params.copy()

    @property
    def decay(self) -> float:
        """The factor of the average in the next update."""
        t = self.n_updates
        return min(self._decay, (1 + t) / (10 + t)) if self._warmup else self._decay

    def update(self) -> None:
        """Take the parameters into the average.

        Raises
        ------
        RuntimeError
            If the average is in the model, after `swap` or inside `applied`.
        """
        self._refuse_swapped("update")
        step = {"step": 1.0 - self.decay}
        _kernels.Update(_kernels.AVERAGE, [self._current()], [self._average], {}, step).run(1.0, 1.0, 0.0)
        self.n_updates += 1

    def after_step(self, step: TrainingStep) -> None:
        """Take the parameters into the average, unless the optimizer has skipped the step.

        Parameters
        ----------
        step : TrainingStep
            The step.
        """
        if not getattr(step.grad_norm, "skipped", False):
            self.update()

    def swap(self) -> None:
        """Exchange the parameters of the model and the average; once more, and all is as before.

        Examples
        --------
        >>> import gradcore
        >>> model = gradcore.Linear(2, 1)
        >>> ema = gradcore.optim.EMA(model)
        >>> model.flat_params.fill(0)
        >>> ema.swap()
        >>> bool(model.flat_params.any())
        True
        """
        params = self._current()
        kept = params.copy()
        params[...] = self._average
        self._average[...] = kept
        self._swapped = not self._swapped

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside a ``with`` block, and its own ones back after it.

        Yields
        ------
        None
            Nothing.

        Raises
        ------
        RuntimeError
            If the average is already in the model.
        """
        self._refuse_swapped("applied")
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def _current(self) -> Array:
        """Return the parameters, which are others after the layer has joined a model."""
        return check_array("model", self._model.flat_params, self._average.dtype, self._average.shape)

    def _refuse_swapped(self, name: str) -> None:
        if self._swapped:
            raise RuntimeError(f"{name}: the average is in the model; call swap first, or leave the with block")

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates, for a checkpoint.

        Returns
        -------
        dict
            The ``average``, a copy like `flat_params`, and ``n_updates``.

        Raises
        ------
        RuntimeError
            If the average is in the model, after `swap` or inside `applied`.

        Examples
        --------
        >>> import gradcore
        >>> ema = gradcore.optim.EMA(gradcore.Linear(2, 1))
        >>> ema.state_dict()["n_updates"], ema.state_dict()["average"].shape
        (0, (3,))
        """
        self._refuse_swapped("state_dict")
        return {"average": self._average.copy(), "n_updates": self.n_updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state; if any of it is invalid, nothing is changed.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned for a model of the same architecture.

        Raises
        ------
        KeyError
            If an entry is missing or unknown.
        TypeError, ValueError
            If it is not a mapping, or an entry does not fit.
        RuntimeError
            If the average is in the model, after `swap` or inside `applied`.
        """
        self._refuse_swapped("load_state_dict")
        check_names("state_dict", state_dict, ("average", "n_updates"))
        average = check_array("average", state_dict["average"], self._average.dtype, self._average.shape)
        self.n_updates = check_int("n_updates", state_dict["n_updates"])
        self._average[...] = average

    def __repr__(self) -> str:
        return f"EMA(decay={self._decay!r}, warmup={self._warmup!r}, n_updates={self.n_updates})"
