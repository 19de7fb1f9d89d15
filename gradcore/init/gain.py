"""The factor by which weights make up for what an activation does to the variance."""

from __future__ import annotations

import math

from gradcore._base.check import check_choice, check_number

__all__ = ["calculate_gain"]

_GAINS = {"linear": 1.0, "identity": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}
_LINEAR_TOO = {f"{name}{n}d" for name in ("conv", "conv_transpose") for n in (1, 2, 3)}  # PyTorch's names
# PyTorch has no gains for these. They keep the second moment of a standard normal input: 1 / sqrt(E[f(z)^2]).
_GAINS |= {"elu": 1.2451983007007066, "gelu": 1.5335304411955235, "softplus": 1.0418668355353017}
_GAINS |= {"silu": 1.6765324703310912}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    r"""Return the factor on a weight's standard deviation that fits the activation.

    The values are PyTorch's: linear (or identity, or a convolution such as conv2d) 1, sigmoid 1, tanh 5/3, relu
    :math:`\sqrt 2`, leaky_relu :math:`\sqrt{2 / (1 + a^2)}`, selu 3/4. For elu, gelu, softplus and silu, where PyTorch
    has none, it is :math:`1 / \sqrt{E[f(z)^2]}`, z standard normal, the rule that gives relu its :math:`\sqrt 2`.

    Parameters
    ----------
    nonlinearity : str
        An activation's name in lower case.
    param : float, optional
        The negative slope of leaky_relu, 0.01 by default; other activations ignore it.

    Returns
    -------
    float
        The gain.

    Raises
    ------
    TypeError
        If `nonlinearity` is not a string or `param` not a number.
    ValueError
        If the activation is unknown.

    Examples
    --------
    >>> from gradcore import init
    >>> init.calculate_gain("leaky_relu", 0.2)
    1.3867504905630728
    """
    if not isinstance(nonlinearity, str):
        raise TypeError(f"nonlinearity: expected a name, got {type(nonlinearity).__name__}")
    if nonlinearity == "leaky_relu":
        slope = check_number("param", 0.01 if param is None else param)
        return math.sqrt(2 / (1 + slope * slope))
    if nonlinearity in _LINEAR_TOO:
        return _GAINS["linear"]
    return _GAINS[check_choice("nonlinearity", nonlinearity, sorted([*_GAINS, "leaky_relu"]))]
