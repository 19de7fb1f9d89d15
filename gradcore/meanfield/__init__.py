"""Forecasts from the statistics of the weights alone: what wide networks do to signals and gradients on average.

A unit of a wide layer adds up many small random numbers, so its pre-activation is Gaussian, and everything follows from
variances. `mean_field` finds where they settle in a deep network or in time, `critical` the weights that neither shrink
nor blow up gradients, `forecast` the growth in a given model. `suggest_gain` and `suggest_bias` say what to change.
"""

from gradcore.meanfield.network import Forecast, LayerField, forecast
from gradcore.meanfield.suggest import suggest_bias, suggest_gain
from gradcore.meanfield.theory import (
    JacobianMoments,
    MeanField,
    critical,
    fuss_catalan,
    jacobian_moments,
    mean_field,
)

__all__ = [
    "Forecast",
    "JacobianMoments",
    "LayerField",
    "MeanField",
    "critical",
    "forecast",
    "fuss_catalan",
    "jacobian_moments",
    "mean_field",
    "suggest_bias",
    "suggest_gain",
]
