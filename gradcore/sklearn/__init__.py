"""Recurrent networks as estimators of scikit-learn."""

from __future__ import annotations

try:
    from gradcore.sklearn.estimators import RNNClassifier, RNNRegressor
except ImportError as error:
    if (error.name or "").partition(".")[0] != "sklearn":  # the library is there, and something else is wrong
        raise
    message = 'gradcore.sklearn needs scikit-learn, 1.6 or newer: pip install "gradcore[sklearn]"'
    raise ModuleNotFoundError(message, name="sklearn") from error

__all__ = ["RNNClassifier", "RNNRegressor"]
