"""Gradients of recurrent and deep networks on CPUs: fast, visible, predictable and safe, from NumPy arrays."""

__version__ = "0.1.0"

from gradcore._threads import get_num_threads, info, set_num_threads
from gradcore.recurrent import GRU, LSTM, RNN
from gradcore.train import History, fit

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "History",
    "__version__",
    "fit",
    "get_num_threads",
    "info",
    "set_num_threads",
]
