"""PyTorch's recurrent layers on gradcore's kernels: faster on the CPU, and with the norms of dL/dh_t."""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError('gradcore.torch needs PyTorch: pip install "gradcore[torch]"', name="torch") from None

from gradcore.torch.convert import convert, restore
from gradcore.torch.diagnosis import diagnose
from gradcore.torch.layers import GRU, LSTM, RNN
from gradcore.torch.watcher import watch

__all__ = ["GRU", "LSTM", "RNN", "convert", "diagnose", "restore", "watch"]
