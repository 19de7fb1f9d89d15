"""Biases of gates that remember for a given time."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from gradcore._base.check import Array, check_number, check_rng
from gradcore.init._fill import Generator, checked

__all__ = ["chrono_"]

T = TypeVar("T")


def chrono_(layer_or_bias: T, T_max: float, T_min: float = 2.0, *, rng: int | Generator | None = None) -> T:
    r"""Set gate biases so that the units remember for T_min to T_max steps.

    A gate that keeps 1 - 1/T of the state in each step has the bias log(T - 1). For LSTM :math:`b_f = \log(U - 1)`, U
    uniform in [T_min, T_max], and :math:`b_i = -b_f`; with T_min = 2 this is :math:`\log(U[1, T_{max} - 1])`. For GRU,
    whose update gate z keeps the old state (h' = (1 - z) n + z h), :math:`b_z = \log(U - 1)`; its input gate is 1 - z.

    The numbers are written into ``bias_ih``, and the same gates of ``bias_hh`` are set to zero, in each layer and
    direction. The biases of the other gates do not change.

    Parameters
    ----------
    layer_or_bias : LSTM, GRU or ndarray, (4H,)
        What to change in place; an array is the bias of an LSTM, in gate order i, f, g, o.
    T_max : float
        The longest time to remember, in steps, at least `T_min`: about the length of the dependencies.
    T_min : float
        The shortest time to remember, in steps, above 1.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    LSTM, GRU or ndarray
        The same `layer_or_bias`.

    Raises
    ------
    TypeError
        If `layer_or_bias` is neither an LSTM nor a GRU nor an array of float32 or float64.
    ValueError
        If the layer has no biases, an array's shape is not (4H,), or a time is out of range.

    References
    ----------
    Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018, arXiv 1804.11188, eq. 16.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> b = init.chrono_(np.zeros(8), T_max=100, rng=np.random.default_rng(0))
    >>> b.round(2)
    array([-4.15, -3.31,  4.15,  3.31,  0.  ,  0.  ,  0.  ,  0.  ])
    """
    shortest = check_number("T_min", T_min, above=1)
    longest = check_number("T_max", T_max, least=shortest)
    if longest == math.inf:
        raise ValueError(f"T_max: expected a finite number, got {T_max}")
    rng = check_rng(rng)

    if isinstance(layer_or_bias, np.ndarray):
        bias = checked(layer_or_bias, ndim=1, name="layer_or_bias")
        if bias.size % 4:
            raise ValueError(f"layer_or_bias: expected shape (4 H,), got {bias.shape}")
        _fill_chrono(bias.reshape(4, -1), 1, (0,), shortest, longest, rng)
        return layer_or_bias

    layer: Any = layer_or_bias
    cell = getattr(layer, "cell", None)
    if cell is None or cell.keeping is None:
        raise TypeError(f"layer_or_bias: expected an LSTM, a GRU or an array, got {type(layer_or_bias).__name__}")
    params = layer.params
    names = [name for name in params if name.startswith("bias_ih")]
    if not names:
        raise ValueError("layer_or_bias: expected a layer with biases; build it with bias=True")
    for name in names:
        b_ih, b_hh = (params[one].reshape(len(cell.gates), -1) for one in (name, name.replace("bias_ih", "bias_hh")))
        keeping = cell.keeping
        _fill_chrono(b_ih, keeping.gate, keeping.opposed, shortest, longest, rng)
        b_hh[[keeping.gate, *keeping.opposed]] = 0
    return layer_or_bias


def _fill_chrono(
    bias: Array, keeping: int, opposed: tuple[int, ...], shortest: float, longest: float, rng: Generator
) -> None:
    """Fill the rows of a bias, (G, H), that belong to the gate that keeps and to those that are its opposite."""
    bias[keeping] = np.log(rng.uniform(shortest, longest, bias.shape[1]) - 1)
    for gate in opposed:
        bias[gate] = -bias[keeping]
