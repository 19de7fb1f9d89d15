"""Losses: each returns the mean of its terms, and the gradient of that mean.

The value is computed in float64, whatever the dtype, and does not overflow for logits of any size. Where the loss is
NaN, so is the gradient of the entries that caused it.

Which terms count is the same question for every loss. `lengths`, of time-major predictions (T, B, ...), leaves out what
lies past a sequence's end; `mask` is true where a term counts. What does not count may be NaN, in the target and in the
prediction, whose gradient is exactly 0 there. The mean is over the number of terms that count, and 0 if there are none.
`weight` multiplies the terms and does not enter their number: it may be an advantage of either sign.

`mask` and `weight` have the shape of the terms or of their leading axes, such as (T, B) or (T,) for terms of shape
(T, B, F); an axis of size 1 stands for any.
"""

from gradcore.losses.classification import binary_cross_entropy, log_softmax, softmax, softmax_cross_entropy
from gradcore.losses.regression import gaussian_nll, huber, mae, mse

__all__ = [
    "binary_cross_entropy",
    "gaussian_nll",
    "huber",
    "log_softmax",
    "mae",
    "mse",
    "softmax",
    "softmax_cross_entropy",
]
