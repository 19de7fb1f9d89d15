"""The start of a recurrent layer whose gradient is forecast to last."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore import init, meanfield
from gradcore._base.check import Array
from gradcore.sklearn.sequences import Sequences
from gradcore.spectral.growth import GrowthPrediction, predict_growth

__all__: list[str] = []  # for the package only

FEW = 8  # sequences along which a forecast is made
LONGEST = 200  # steps of a forecast
LOST = float(np.finfo(np.float32).eps)  # what is left of a gradient that is below the rounding of others


def begin(layer: Any, sequences: Sequences, train: Array, rng: np.random.Generator, *, change: bool) -> Any:
    """Return the forecast of the gradient's growth, after a change of the layer that improves it, if it may change.

    A gradient that vanishes is no reason for a change as long as all steps leave something of it: short sequences are
    learned best from the ordinary start.
    """
    longest = train[np.argsort(-sequences.lengths[train], kind="stable")]
    T = min(int(sequences.lengths[longest[:FEW]].min()), LONGEST)
    if T < 2:
        return None
    x = np.ascontiguousarray(sequences.batch(longest[:FEW])["x"][:T])
    drawn = _forecast(layer, x)
    if not change or (drawn.factor > LOST and drawn.verdict != "explodes"):
        return drawn
    before = layer.flat_params.copy()
    if drawn.verdict == "vanishes" and layer.cell.keeping is not None:
        init.chrono_(layer, int(sequences.lengths[longest[0]]), rng=rng)
    else:
        _scale(layer, x)
    changed = _forecast(layer, x)
    if abs(changed.rate) < abs(drawn.rate):
        return changed
    layer.flat_params[...] = before
    return drawn


def _forecast(layer: Any, x: Array) -> GrowthPrediction:
    return predict_growth(layer, x, horizon=len(x) - 1)


def _scale(layer: Any, x: Array) -> None:
    """Scale the recurrent weights so that the gradient keeps its norm, if a factor does."""
    try:
        factor = meanfield.suggest_gain(layer, x)
    except ValueError:
        return
    for name, weight in layer.params.items():
        if name.startswith("weight_hh"):
            weight[...] *= layer.dtype.type(factor)
