"""RNN, LSTM and GRU layers: whole sequences forward, and back through time."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from gradcore._base.check import (
    check_choice,
)
from gradcore.layers.cell import CELLS
from gradcore.layers.stack import Recurrent

__all__ = ["GRU", "LSTM", "RNN"]


class RNN(Recurrent):
    r"""Elman network: whole sequences through one or more recurrent layers.

    .. math:: h_t = \varphi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \qquad \varphi = \tanh \text{ or relu}

    Parameters
    ----------
    input_size : int
        I, the size of x_t.
    hidden_size : int
        H, the size of h_t.
    num_layers : int
        L, the number of layers; each reads the outputs of the one below.
    nonlinearity : {"tanh", "relu"}
        The activation.
    bias : bool
        Whether there are biases b_ih and b_hh.
    batch_first : bool
        Whether x and y are (B, T, F) instead of (T, B, F). States never are.
    dropout : float
        The probability with which `forward` sets an output between two layers to zero; the others are scaled up.
    bidirectional : bool
        Whether a second direction reads each sequence from its end (D = 2). y then holds the outputs of both, side by
        side.
    layer_norm : bool
        Whether the products of the weights with x and h are normalized; see Notes.
    zoneout : float
        The probability with which `forward` lets a unit of the state keep its old value for a step; ``layer(x)`` takes
        the mean instead.
    recurrent_dropout : float
        The probability with which `forward` sets a unit of the h that meets W_h to zero, for all steps of a sequence;
        the others are scaled up.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters from U(-1/sqrt(H), 1/sqrt(H)) and all masks.

    Notes
    -----
    With `layer_norm` [2]_, each of :math:`a = W_i x_t` and :math:`a = W_h h_{t-1}` becomes

    .. math:: \gamma \odot \frac{a - mean(a)}{\sqrt{var(a) + 10^{-5}}}

    before the biases are added, with mean and variance over all of its H features and the gains `norm_ih_weight_l0`
    and `norm_hh_weight_l0`, which are 1 to begin with.

    Zoneout [3]_ keeps units of h. Recurrent dropout has one mask for all steps of a sequence [4]_.

    After `backward`, ``tape.telemetry`` holds the norms of the gradient at every layer, direction and time step:
    `dh_norm` (L*D, T), and for each sequence `dh_norm_per_sample` (L*D, T, B); also `n_clipped`, how many sequences
    `step_clip` rescaled, and `first_nonfinite`, where the first NaN or infinity arose.

    References
    ----------
    .. [1] Elman, "Finding structure in time", Cognitive Science 14, 1990.
    .. [2] Ba, Kiros and Hinton, "Layer normalization", arXiv 1607.06450, 2016.
    .. [3] Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", arXiv 1606.01305,
       2017.
    .. [4] Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", arXiv
       1512.05287, 2016.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rnn = gradcore.RNN(3, 5, rng=0)
    >>> y, tape = rnn.forward(np.ones((7, 2, 3), np.float32))
    >>> dx = rnn.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, tape.telemetry.dh_norm.shape
    ((7, 2, 5), (7, 2, 3), (1, 7))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.cell = CELLS[f"rnn_{self.nonlinearity}"]
        super().__init__(
            input_size, hidden_size, num_layers,
            bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, layer_norm=layer_norm,
            zoneout=zoneout, recurrent_dropout=recurrent_dropout, dtype=dtype, rng=rng,
        )  # fmt: skip


class LSTM(Recurrent):
    r"""Long short-term memory: whole sequences through one or more recurrent layers.

    .. math::
        i_t, f_t, o_t &= \sigma(W_{i*} x_t + b_{i*} + W_{h*} h_{t-1} + b_{h*}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t c_{t-1} + i_t g_t, \qquad h_t = o_t \tanh(c_t)

    Weights and biases hold the rows of i, f, g, o in this order, as in PyTorch. A state is a pair (h, c).

    Parameters
    ----------
    input_size : int
        I, the size of x_t.
    hidden_size : int
        H, the size of h_t.
    num_layers : int
        L, the number of layers; each reads the outputs of the one below.
    bias : bool
        Whether there are biases b_ih and b_hh.
    batch_first : bool
        Whether x and y are (B, T, F) instead of (T, B, F). States never are.
    dropout : float
        The probability with which `forward` sets an output between two layers to zero; the others are scaled up.
    bidirectional : bool
        Whether a second direction reads each sequence from its end (D = 2). y then holds the outputs of both, side by
        side.
    layer_norm : bool
        Whether the products of the weights with x and h are normalized; see Notes.
    zoneout : float
        The probability with which `forward` lets a unit of the state keep its old value for a step; ``layer(x)`` takes
        the mean instead.
    recurrent_dropout : float
        The probability with which `forward` sets a unit of the h that meets W_h to zero, for all steps of a sequence;
        the others are scaled up.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters from U(-1/sqrt(H), 1/sqrt(H)) and all masks.

    Notes
    -----
    With `layer_norm` [3]_, each of :math:`a = W_i x_t` and :math:`a = W_h h_{t-1}` becomes

    .. math:: \gamma \odot \frac{a - mean(a)}{\sqrt{var(a) + 10^{-5}}}

    before the biases are added, with mean and variance over all of its 4H features and the gains `norm_ih_weight_l0`
    and `norm_hh_weight_l0`, which are 1 to begin with.
    In h_t, c_t is normalized over its H units too, with the gain `norm_c_weight_l0` and the bias `norm_c_bias_l0`; the
    c_t that goes on to the next step is not.

    Zoneout [4]_ keeps units of h and, by a mask of its own, of c; h_t is made of the c_t of the formulas,
    whether that is kept or not. Recurrent dropout has one mask for all steps of a sequence [5]_.

    After `backward`, ``tape.telemetry`` holds the norms of the gradient at every layer, direction and time step:
    `dh_norm` (L*D, T), `dc_norm` likewise for c_t, and for each sequence `dh_norm_per_sample` and
    `dc_norm_per_sample` (L*D, T, B); also `n_clipped`, how many sequences `step_clip` rescaled, and `first_nonfinite`,
    where the first NaN or infinity arose.

    References
    ----------
    .. [1] Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.
    .. [2] Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12, 2000.
    .. [3] Ba, Kiros and Hinton, "Layer normalization", arXiv 1607.06450, 2016.
    .. [4] Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", arXiv 1606.01305,
       2017.
    .. [5] Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", arXiv
       1512.05287, 2016.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> lstm = gradcore.LSTM(3, 5, rng=0)
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), np.float32), lengths=[7, 4])
    >>> bool((y[4:, 1] == 0).all()), bool((h[0, 1] == y[3, 1]).all())
    (True, True)
    """

    cell = CELLS["lstm"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers,
            bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, layer_norm=layer_norm,
            zoneout=zoneout, recurrent_dropout=recurrent_dropout, dtype=dtype, rng=rng,
        )  # fmt: skip


class GRU(Recurrent):
    r"""Gated recurrent unit: whole sequences through one or more recurrent layers.

    .. math::
        r_t, z_t &= \sigma(W_{i*} x_t + b_{i*} + W_{h*} h_{t-1} + b_{h*}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) n_t + z_t h_{t-1}

    The reset gate r is applied after the recurrent product. Weights and biases hold the rows of r, z, n in this order,
    as in PyTorch.

    Parameters
    ----------
    input_size : int
        I, the size of x_t.
    hidden_size : int
        H, the size of h_t.
    num_layers : int
        L, the number of layers; each reads the outputs of the one below.
    bias : bool
        Whether there are biases b_ih and b_hh.
    batch_first : bool
        Whether x and y are (B, T, F) instead of (T, B, F). States never are.
    dropout : float
        The probability with which `forward` sets an output between two layers to zero; the others are scaled up.
    bidirectional : bool
        Whether a second direction reads each sequence from its end (D = 2). y then holds the outputs of both, side by
        side.
    layer_norm : bool
        Whether the products of the weights with x and h are normalized; see Notes.
    zoneout : float
        The probability with which `forward` lets a unit of the state keep its old value for a step; ``layer(x)`` takes
        the mean instead.
    recurrent_dropout : float
        The probability with which `forward` sets a unit of the h that meets W_h to zero, for all steps of a sequence;
        the others are scaled up.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters from U(-1/sqrt(H), 1/sqrt(H)) and all masks.

    Notes
    -----
    With `layer_norm` [2]_, each of :math:`a = W_i x_t` and :math:`a = W_h h_{t-1}` becomes

    .. math:: \gamma \odot \frac{a - mean(a)}{\sqrt{var(a) + 10^{-5}}}

    before the biases are added, with mean and variance over all of its 3H features and the gains `norm_ih_weight_l0`
    and `norm_hh_weight_l0`, which are 1 to begin with.
    It is the normalized :math:`W_{hn} h_{t-1}` that r multiplies.

    Zoneout [3]_ keeps units of h. Recurrent dropout has one mask for all steps of a sequence [4]_.

    After `backward`, ``tape.telemetry`` holds the norms of the gradient at every layer, direction and time step:
    `dh_norm` (L*D, T), and for each sequence `dh_norm_per_sample` (L*D, T, B); also `n_clipped`, how many sequences
    `step_clip` rescaled, and `first_nonfinite`, where the first NaN or infinity arose.

    References
    ----------
    .. [1] Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
       arXiv 1406.1078v1, 2014.
    .. [2] Ba, Kiros and Hinton, "Layer normalization", arXiv 1607.06450, 2016.
    .. [3] Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", arXiv 1606.01305,
       2017.
    .. [4] Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", arXiv
       1512.05287, 2016.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gru = gradcore.GRU(3, 5, num_layers=2, bidirectional=True, rng=0)
    >>> y, h = gru(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 10), (4, 2, 5))
    """

    cell = CELLS["gru"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers,
            bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, layer_norm=layer_norm,
            zoneout=zoneout, recurrent_dropout=recurrent_dropout, dtype=dtype, rng=rng,
        )  # fmt: skip
