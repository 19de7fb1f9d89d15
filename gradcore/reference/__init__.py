"""NumPy twins of the kernels: slow and plain, to judge the fast ones.

They import NumPy only, work in the dtype of their input, and follow the formulas step by step. One file per subject.
"""

from gradcore.reference.attention import attention_backward, attention_forward
from gradcore.reference.clip import clip_grad_norm, grad_norm
from gradcore.reference.dropout import dropout
from gradcore.reference.embedding import embedding_backward, embedding_forward
from gradcore.reference.feedforward import (
    activation_backward,
    activation_forward,
    linear_backward,
    linear_forward,
    prelu_backward,
    prelu_forward,
)
from gradcore.reference.losses import binary_cross_entropy, gaussian_nll, huber, mae, mse, softmax_cross_entropy
from gradcore.reference.normalization import (
    batch_norm_backward,
    batch_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from gradcore.reference.optim import adagrad, adam, adamw, ema, lion, nadam, radam, rmsprop, sgd, spam
from gradcore.reference.pooling import mean_pool_backward, mean_pool_forward
from gradcore.reference.recurrent import (
    RecurrentGradients,
    RecurrentTape,
    recurrent_backward,
    recurrent_forward,
    zoneout_mask,
)
from gradcore.reference.spectral import carried_back, lyapunov_exponents, step_jacobians

__all__ = [
    "RecurrentGradients",
    "RecurrentTape",
    "activation_backward",
    "activation_forward",
    "adagrad",
    "adam",
    "adamw",
    "attention_backward",
    "attention_forward",
    "batch_norm_backward",
    "batch_norm_forward",
    "binary_cross_entropy",
    "carried_back",
    "clip_grad_norm",
    "dropout",
    "ema",
    "embedding_backward",
    "embedding_forward",
    "gaussian_nll",
    "grad_norm",
    "huber",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "lion",
    "lyapunov_exponents",
    "mae",
    "mean_pool_backward",
    "mean_pool_forward",
    "mse",
    "nadam",
    "prelu_backward",
    "prelu_forward",
    "radam",
    "recurrent_backward",
    "recurrent_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rmsprop",
    "sgd",
    "softmax_cross_entropy",
    "spam",
    "step_jacobians",
    "zoneout_mask",
]
