"""Initializers: each fills an array in place and returns it.

Names and arguments are those of ``torch.nn.init``. Weights are (out, in); further axes multiply both fans. Any writable
float32 or float64 array will do, strided views too, such as one gate's block of a recurrent matrix. Numbers are drawn
in float64 and rounded once, so both dtypes get the same ones.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from gradcore._base.check import Array, check_choice, check_number, check_real, check_rng, check_writable

__all__ = [
    "calculate_gain",
    "chrono_",
    "constant_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "normal_",
    "orthogonal_",
    "sparse_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
]

Generator = np.random.Generator
T = TypeVar("T")

_GAINS = {"linear": 1.0, "identity": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}
_LINEAR_TOO = {f"{name}{n}d" for name in ("conv", "conv_transpose") for n in (1, 2, 3)}  # PyTorch's names
# PyTorch has no gains for these. They keep the second moment of a standard normal input: 1 / sqrt(E[f(z)^2]).
_GAINS |= {"elu": 1.2451983007007066, "gelu": 1.5335304411955235, "softplus": 1.0418668355353017}


def _checked(tensor: Any, *, least_ndim: int = 0, ndim: int | None = None, name: str = "tensor") -> Array:
    """Return an array that an initializer can fill."""
    a = check_writable(name, tensor)
    if a.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {a.dtype}")
    if ndim is not None and a.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, got shape {a.shape}")
    if a.ndim < least_ndim:
        raise ValueError(f"{name}: expected at least {least_ndim} axes, got shape {a.shape}")
    return a


def _fans(a: Array) -> tuple[int, int]:
    """Return how many inputs an output has, and how many outputs an input has."""
    rest = math.prod(a.shape[2:])
    return a.shape[1] * rest, a.shape[0] * rest


def _fan(a: Array, mode: str) -> int:
    return _fans(a)[check_choice("mode", mode, ("fan_in", "fan_out")) == "fan_out"]


def _fill(a: Array, name: str, value: float, values: Array) -> Array:
    """Store what was drawn with this argument, or raise an error if the dtype cannot hold it."""
    with np.errstate(over="ignore"):
        rounded = values.astype(a.dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{name}: expected numbers in the range of {a.dtype}, got {value:g}")
    a[...] = rounded
    return a


def _fill_uniform(a: Array, std: float, rng: int | Generator | None) -> Array:
    bound = math.sqrt(3) * abs(std)
    if bound > float(np.finfo(a.dtype).max) / 2:  # their difference has to be finite too
        raise ValueError(f"gain: expected numbers in the range of {a.dtype}, got bounds of {bound:g}")
    return _fill(a, "gain", std, check_rng(rng).uniform(-bound, bound, a.shape))


def _fill_normal(a: Array, std: float, rng: int | Generator | None) -> Array:
    return _fill(a, "gain", std, check_rng(rng).normal(0.0, std, a.shape))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    r"""Return the factor on a weight's standard deviation that fits the activation.

    The values are PyTorch's: linear (or identity, or a convolution such as conv2d) 1, sigmoid 1, tanh 5/3, relu
    :math:`\sqrt 2`, leaky_relu :math:`\sqrt{2 / (1 + a^2)}`, selu 3/4. For elu, gelu and softplus, where PyTorch has
    none, it is :math:`1 / \sqrt{E[f(z)^2]}`, z standard normal, the rule that gives relu its :math:`\sqrt 2`.

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


def uniform_(tensor: Array, a: float = 0.0, b: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    """Fill with numbers drawn uniformly from [a, b).

    Parameters
    ----------
    tensor : ndarray
        The array to fill, float32 or float64, of any shape.
    a, b : float
        The bounds, `b` at least `a`.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only, or `b` is below `a`.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.uniform_(np.empty(3), -1, 1, rng=np.random.default_rng(0))
    array([ 0.27392337, -0.46042657, -0.91805295])
    """
    array = _checked(tensor)
    low = check_number("a", a)
    high = check_number("b", b, least=low)
    if not high - low < math.inf:
        raise ValueError(f"b: expected a finite distance from a = {low:g}, got {high:g}")
    return _fill(array, "a and b", high, check_rng(rng).uniform(low, high, array.shape))


def normal_(tensor: Array, mean: float = 0.0, std: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    """Fill with numbers drawn from a normal distribution.

    Parameters
    ----------
    tensor : ndarray
        The array to fill, float32 or float64, of any shape.
    mean, std : float
        Mean and standard deviation, at least 0.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only, or `std` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.normal_(np.empty((2, 2)), std=0.01, rng=np.random.default_rng(0))
    array([[ 0.0012573 , -0.00132105],
           [ 0.00640423,  0.001049  ]])
    """
    array = _checked(tensor)
    middle, scale = check_number("mean", mean), check_number("std", std, least=0)
    if math.isinf(middle) or math.isinf(scale):
        raise ValueError(f"mean, std: expected finite numbers, got {middle:g}, {scale:g}")
    largest = max(middle, scale, key=abs)
    return _fill(array, "mean, std", largest, check_rng(rng).normal(middle, scale, array.shape))


def constant_(tensor: Array, val: float) -> Array:
    """Fill with one value.

    Parameters
    ----------
    tensor : ndarray
        The array to fill, float32 or float64, of any shape.
    val : float
        The value, which may be infinite or NaN.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.constant_(np.empty(3), 0.5)
    array([0.5, 0.5, 0.5])
    """
    array = _checked(tensor)
    value = check_real("val", val)
    if math.isfinite(value):
        return _fill(array, "val", value, np.array(value))
    array[...] = value
    return array


def eye_(tensor: Array) -> Array:
    """Fill with the identity matrix, which passes on as many inputs as possible.

    Parameters
    ----------
    tensor : ndarray, (out, in)
        The weight to fill, float32 or float64.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or does not have two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.eye_(np.empty((2, 3)))
    array([[1., 0., 0.],
           [0., 1., 0.]])
    """
    array = _checked(tensor, ndim=2)
    array[...] = np.eye(*array.shape)
    return array


def xavier_uniform_(tensor: Array, gain: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    r"""Fill with numbers drawn from U(-b, b), :math:`b = gain \sqrt{6 / (n_{in} + n_{out})}`.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    gain : float
        Factor on the standard deviation, as returned by `calculate_gain`.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or has fewer than two axes.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, eq. 16.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.xavier_uniform_(np.empty((20, 40)), rng=np.random.default_rng(0))
    >>> bool(np.abs(w).max() <= np.sqrt(6 / 60))
    True
    """
    array = _checked(tensor, least_ndim=2)
    return _fill_uniform(array, check_number("gain", gain) * math.sqrt(2 / max(sum(_fans(array)), 1)), rng)


def xavier_normal_(tensor: Array, gain: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    r"""Fill with normally distributed numbers of variance :math:`gain^2 \cdot 2 / (n_{in} + n_{out})`.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    gain : float
        Factor on the standard deviation, as returned by `calculate_gain`.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or has fewer than two axes.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, eq. 12.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.xavier_normal_(np.empty((1, 2)), gain=5 / 3, rng=np.random.default_rng(0))
    array([[ 0.17109716, -0.17977195]])
    """
    array = _checked(tensor, least_ndim=2)
    return _fill_normal(array, abs(check_number("gain", gain)) * math.sqrt(2 / max(sum(_fans(array)), 1)), rng)


def kaiming_uniform_(
    tensor: Array,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: int | Generator | None = None,
) -> Array:
    r"""Fill with U(-b, b), :math:`b = gain \sqrt{3 / n}`, n the fan.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    a : float
        The negative slope; only used if `nonlinearity` is "leaky_relu".
    mode : {"fan_in", "fan_out"}
        The n: "fan_in" keeps the variance of the outputs, "fan_out" that of the gradients.
    nonlinearity : str
        Activation that follows, as in `calculate_gain`.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or has fewer than two axes, or `mode` or `nonlinearity` is unknown.

    References
    ----------
    He et al., "Delving deep into rectifiers", 2015, arXiv 1502.01852, eq. 10, 14 and 15.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.kaiming_uniform_(np.empty((20, 40)), nonlinearity="relu", rng=np.random.default_rng(0))
    >>> bool(np.abs(w).max() <= np.sqrt(6 / 40))
    True
    """
    array = _checked(tensor, least_ndim=2)
    gain = calculate_gain(nonlinearity, check_number("a", a))
    return _fill_uniform(array, gain / math.sqrt(max(_fan(array, mode), 1)), rng)


def kaiming_normal_(
    tensor: Array,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: int | Generator | None = None,
) -> Array:
    r"""Fill with normally distributed numbers of variance :math:`gain^2 / n`, n the fan.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    a : float
        The negative slope; only used if `nonlinearity` is "leaky_relu".
    mode : {"fan_in", "fan_out"}
        The n: "fan_in" keeps the variance of the outputs, "fan_out" that of the gradients.
    nonlinearity : str
        Activation that follows, as in `calculate_gain`.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or has fewer than two axes, or `mode` or `nonlinearity` is unknown.

    References
    ----------
    He et al., "Delving deep into rectifiers", 2015, arXiv 1502.01852, eq. 10, 14 and 15.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.kaiming_normal_(np.empty((1, 2)), nonlinearity="relu", rng=np.random.default_rng(0))
    array([[ 0.12573022, -0.13210486]])
    """
    array = _checked(tensor, least_ndim=2)
    gain = calculate_gain(nonlinearity, check_number("a", a))
    return _fill_normal(array, gain / math.sqrt(max(_fan(array, mode), 1)), rng)


def lecun_normal_(tensor: Array, *, rng: int | Generator | None = None) -> Array:
    r"""Fill with normally distributed numbers of variance :math:`1 / n_{in}`, for self-normalizing networks (SELU).

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or has fewer than two axes.

    References
    ----------
    LeCun et al., "Efficient BackProp", 1998, eq. 16; Klambauer et al., "Self-normalizing neural networks", 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.lecun_normal_(np.empty((1, 4)), rng=np.random.default_rng(0))
    array([[ 0.06286511, -0.06605243,  0.32021133,  0.05245006]])
    """
    array = _checked(tensor, least_ndim=2)
    return _fill_normal(array, 1 / math.sqrt(max(_fan(array, "fan_in"), 1)), rng)


def orthogonal_(tensor: Array, gain: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    """Fill with gain times a random matrix whose rows or columns, whichever are fewer, are orthonormal.

    The matrix is drawn uniformly. All axes but the first count as one. A recurrent matrix stacks several gates; to make
    the matrix of each gate orthogonal, fill its (H, H) blocks one by one.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    gain : float
        The value of all singular values.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or has fewer than two axes.

    References
    ----------
    Saxe, McClelland and Ganguli, 2014, arXiv 1312.6120; uniform by the signs of R: Mezzadri, 2007, math-ph/0609050.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.orthogonal_(np.empty((2, 5)), rng=np.random.default_rng(0))
    >>> bool(np.allclose(w @ w.T, np.eye(2)))
    True
    """
    array = _checked(tensor, least_ndim=2)
    scale = check_number("gain", gain)
    rows, cols = array.shape[0], math.prod(array.shape[1:])
    tall = check_rng(rng).normal(size=(max(rows, cols), min(rows, cols)))
    q, r = np.linalg.qr(tall)
    with np.errstate(over="ignore", invalid="ignore"):
        q *= scale * np.where(np.diagonal(r) < 0, -1, 1)
    return _fill(array, "gain", scale, (q if rows >= cols else q.T).reshape(array.shape))


def sparse_(tensor: Array, sparsity: float, std: float = 0.01, *, rng: int | Generator | None = None) -> Array:
    """Fill each column with zeros in random places and normally distributed numbers in the others.

    Parameters
    ----------
    tensor : ndarray, (out, in)
        The weight to fill, float32 or float64.
    sparsity : float
        The part of a column that is zero, from 0 to 1, rounded up to whole entries.
    std : float
        The standard deviation of the other entries, at least 0.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or does not have two axes, or a number is out of range.

    References
    ----------
    Martens, "Deep learning via Hessian-free optimization", 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.sparse_(np.empty((10, 4)), 0.8, rng=np.random.default_rng(0))
    >>> np.count_nonzero(w, axis=0)
    array([2, 2, 2, 2])
    """
    array = _checked(tensor, ndim=2)
    share, scale = check_number("sparsity", sparsity, least=0, most=1), check_number("std", std, least=0)
    rng = check_rng(rng)
    values = rng.normal(0.0, scale, array.shape)
    zeros = rng.random(array.shape).argsort(axis=0)[: math.ceil(share * array.shape[0])]
    np.put_along_axis(values, zeros, 0.0, axis=0)
    return _fill(array, "std", scale, values)


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
        bias = _checked(layer_or_bias, ndim=1, name="layer_or_bias")
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
