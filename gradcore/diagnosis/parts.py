"""The parts of a diagnosis, as plain data."""

from __future__ import annotations

import dataclasses
import html
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_path
from gradcore._base.files import jsonable, write_atomically
from gradcore._base.html import html_table
from gradcore.diagnosis.config import Config
from gradcore.diagnosis.report import page
from gradcore.diagnosis.trials import ClipThresholds, Conclusion, Outcome, Suggestions, Trial
from gradcore.diagnosis.wording import number, per_step
from gradcore.spectral import Condition, LayerGrowth
from gradcore.spectral.verdict import Verdict
from gradcore.training.history import History
from gradcore.training.monitor import Finding

__all__ = [
    "Comparison",
    "Depth",
    "Diagnosis",
    "LayerRates",
    "Length",
    "Matrix",
    "Measurement",
    "Spectrum",
    "Start",
    "Study",
    "TimeForecast",
]


@dataclass(frozen=True)
class Start:
    """What is about to be examined.

    Parameters
    ----------
    config : Config
        What was asked for.
    task : str
        Name of the task.
    data : dict
        What was read, in JSON's types; empty for a task of the literature.
    baselines : dict of str to float
        Losses, on the sequences held out, of answers that need no model.
    accuracies : dict of str to float
        Shares of the labels held out that these answers get right; empty where targets are values.
    input_size, output_size : int
        Sizes of the task.
    steps_back : int
        Number of steps from the last to the first.
    n_parameters : int
        Number of parameters of the model.
    machine : dict
        What `gradcore.info` returns.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.parts import Start
    >>> config = Config("adding")
    >>> task = task_of(config)
    >>> size = config.problem(task).model().flat_params.size
    >>> start = Start(config, task.name, {}, task.baselines, {}, task.input_size, task.output_size, 99, size, {})
    >>> start.config.source, start.n_parameters
    ('adding', 4417)
    """

    config: Config
    task: str
    data: Mapping[str, Any]
    baselines: Mapping[str, float]
    accuracies: Mapping[str, float]
    input_size: int
    output_size: int
    steps_back: int
    n_parameters: int
    machine: dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """One recurrent matrix; of a gated cell, that of one gate.

    Parameters
    ----------
    name : str
        Name of the parameter, and gate.
    radius : float
        Spectral radius.
    norm : float
        Spectral norm.
    eigenvalues : ndarray, (H,)
        Complex.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import forecast
    >>> matrix = forecast(model, x, horizon=100).matrices[0]
    >>> matrix.name, matrix.eigenvalues.shape, matrix.radius <= matrix.norm
    ('0.weight_hh_l0', (8,), True)
    """

    name: str
    radius: float
    norm: float
    eigenvalues: Array


@dataclass(frozen=True)
class Spectrum:
    """The Lyapunov exponents of one layer along real sequences.

    Parameters
    ----------
    name : str
        Name of the layer.
    exponents : ndarray, (k,)
        Natural logarithms per step, largest first.
    largest : float
        The first of them.
    dimension : float
        Kaplan-Yorke dimension; a lower bound if it is k and k is less than `state_size`.
    state_size : int
        Number of exponents that there are: H, or 2H for LSTM.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import forecast
    >>> spectrum = forecast(model, x, horizon=100).spectra[0]
    >>> spectrum.name, spectrum.exponents.shape, spectrum.state_size
    ('0.l0', (8,), 8)
    """

    name: str
    exponents: Array
    largest: float
    dimension: float
    state_size: int

    @property
    def filled(self) -> str:
        """The dimension in words."""
        least = self.dimension == len(self.exponents) < self.state_size
        return "at least " * least + number(self.dimension)


@dataclass(frozen=True)
class TimeForecast:
    """What can be said before any gradient has been computed.

    Parameters
    ----------
    matrices : tuple of Matrix
        The recurrent matrices.
    conditions : tuple of Condition
        Those of the layer with the largest rate.
    rate : float
        The largest rate of all layers, natural logarithm per step back.
    factor : float
        By how much the gradient's norm changes over the horizon at that rate.
    verdict : {"explodes", "vanishes", "stable"}
        What that amounts to.
    horizon : int
        Number of steps back.
    curves : ndarray, (layers, T)
        Norm expected at each time step, relative to the last one.
    layers : tuple of LayerGrowth
        Forecast of each layer and direction.
    spectra : tuple of Spectrum
        Lyapunov exponents of each layer of one direction.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import forecast
    >>> found = forecast(model, x, horizon=100)
    >>> found.verdict, found.rate < 0, found.curves.shape
    ('vanishes', True, (1, 5))
    """

    matrices: tuple[Matrix, ...]
    conditions: tuple[Condition, ...]
    rate: float
    factor: float
    verdict: Verdict
    horizon: int
    curves: Array
    layers: tuple[LayerGrowth, ...]
    spectra: tuple[Spectrum, ...]


@dataclass(frozen=True)
class Measurement:
    """What a backward pass shows where the loss acts on the last step alone.

    Parameters
    ----------
    names : tuple of str
        Names of the layers and directions, as in `TimeForecast.layers`.
    norms : ndarray, (layers, T)
        L2 norm of dL/dh at each time step.
    rates : tuple of float
        Growth of each row, natural logarithm per step back, as `gradcore.spectral.measure_growth` fits it; NaN where
        there is no gradient.
    rate : float
        The largest of them.
    factor : float
        By how much the norm of that row changes over the horizon: over the whole sequence the ratio of its norms, over
        another horizon, or where a norm underflows, what the rate comes to.
    verdict : {"explodes", "vanishes", "stable"}
        What that factor amounts to.
    n_sequences, n_growing : int
        Number of sequences whose gradient can be followed in the row of that rate, and of those where it grows.
    median_rate : float
        The median of their rates. A norm over all sequences follows the one that grows most.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import measure
    >>> target = np.zeros((5, 3, 1), np.float32)
    >>> found = measure(model, x, target, gradcore.losses.mse, horizon=100)
    >>> found.verdict, found.names, found.norms.shape
    ('vanishes', ('0.l0',), (1, 5))
    """

    names: tuple[str, ...]
    norms: Array
    rates: tuple[float, ...]
    rate: float
    factor: float
    verdict: Verdict
    n_sequences: int = 0
    n_growing: int = 0
    median_rate: float = math.nan

    def expected(self, forecast: TimeForecast) -> Array:
        """Return the norms that are forecast where each row's gradient begins as it was measured.

        Parameters
        ----------
        forecast : TimeForecast
            The forecast of the same model.

        Returns
        -------
        ndarray, (layers, T)
            The norms. In the reverse direction the loss, and so the gradient's beginning, is at the first step.
        """
        rows = zip(self.names, self.norms, forecast.curves, strict=True)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(
                [norms[0] * row[::-1] if name.endswith("_reverse") else norms[-1] * row for name, norms, row in rows]
            )


@dataclass(frozen=True)
class Length:
    """What is measured with sequences of another length.

    Parameters
    ----------
    steps : int
        Number of steps of a sequence.
    rate : float
        Growth, natural logarithm per step back.
    factor : float
        By how much the norm changes over the sequence.
    verdict : {"explodes", "vanishes", "stable"}
        What that amounts to.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import Length
    >>> Length(50, -0.1, 0.0074, "vanishes").steps
    50
    """

    steps: int
    rate: float
    factor: float
    verdict: Verdict


@dataclass(frozen=True)
class LayerRates:
    """Rates of one layer and direction side by side, natural logarithms per step back.

    Parameters
    ----------
    name : str
        Name of the layer.
    predicted : float
        Rate of its own recurrence.
    upper_bound : float
        No smaller than that.
    with_above : float
        The largest rate of this layer and of those above it: what `measured` should come to.
    measured : float
        Rate that the backward pass showed.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import LayerRates
    >>> rates = LayerRates("l0", predicted=-0.12, upper_bound=0.05, with_above=-0.12, measured=-0.11)
    >>> round(rates.measured - rates.with_above, 2)
    0.01
    """

    name: str
    predicted: float
    upper_bound: float
    with_above: float
    measured: float


@dataclass(frozen=True)
class Comparison:
    """Forecast and measurement by layer.

    Parameters
    ----------
    layers : tuple of LayerRates
        From the first layer.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import Comparison, LayerRates
    >>> comparison = Comparison((LayerRates("l0", -0.12, 0.05, -0.12, -0.11),))
    >>> [layer.name for layer in comparison.layers]
    ['l0']
    """

    layers: tuple[LayerRates, ...]


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `gradcore.diagnose` found.

    Parameters
    ----------
    forecast : TimeForecast
        From the weights and the states that they lead through.
    measurement : Measurement
        From a backward pass.
    comparison : Comparison
        Both by layer.
    verdict : Conclusion
        What is wrong, and what to do.

    Examples
    --------
    >>> import gradcore
    >>> batches = gradcore.data.load("adding").batches(8, steps=1)
    >>> model = gradcore.Sequential(gradcore.GRU(2, 8, rng=0), gradcore.LastStep(), gradcore.Linear(8, 1, rng=0))
    >>> found = gradcore.diagnose(model, batches, gradcore.losses.mse)
    >>> found.verdict.kind, found.forecast.rate < 0
    ('vanishes', True)
    """

    forecast: TimeForecast
    measurement: Measurement
    comparison: Comparison
    verdict: Conclusion

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.verdict.kind}: factor a step {per_step(self.measurement.rate)} measured, "
            f"{per_step(self.forecast.rate)} forecast)"
        )

    def _repr_html_(self) -> str:
        rows = [
            (layer.name, *(f"{v:.4f}" for v in (layer.predicted, layer.upper_bound, layer.with_above, layer.measured)))
            for layer in self.comparison.layers
        ]
        head = ("rate, ln per step", "predicted", "at most", "with above", "measured")
        verdict = html.escape(f"{self.verdict.finding} {self.verdict.advice}")
        return f"<p><b>{self.verdict.kind}</b>: {verdict}</p>{html_table(rows, header=head)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis in JSON's own types, as docs/diagnosis-json.md describes them.

        Returns
        -------
        dict
            Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity".
        """
        fields = {part.name: _plain(getattr(self, part.name)) for part in dataclasses.fields(self)}
        document: dict[str, Any] = jsonable({"format": "gradcore.Diagnosis", "version": 2} | fields | self._given())
        return document

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report: one file of HTML with figures and the tables of their numbers, which needs no network.

        Parameters
        ----------
        path : path
            The file. It is written whole or, if anything goes wrong, not at all.

        Raises
        ------
        ImportError
            If bokeh is not installed.
        OSError
            If the file cannot be written.
        """
        path = check_path("path", path)
        write_atomically(path, page(self).encode())

    def _given(self) -> dict[str, Any]:
        """What the document has beside the parts."""
        return {}


@dataclass(frozen=True)
class Depth:
    """What one layer of a model does to the gradient on its way back.

    Parameters
    ----------
    name : str
        The name of the layer.
    dx_norm, dy_norm : float
        The L2 norms of the gradient at its input and at its output; NaN where there is none.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import Depth
    >>> Depth("head", 0.5, 1.0).dx_norm
    0.5
    """

    name: str
    dx_norm: float
    dy_norm: float


@dataclass(frozen=True, repr=False)
class Study(Diagnosis):
    """A diagnosis with trials: what `gradcore diagnose` found.

    Parameters
    ----------
    forecast : TimeForecast
        From the weights and the states that they lead through.
    measurement : Measurement
        From a backward pass.
    comparison : Comparison
        Both by layer.
    verdict : Outcome
        What is wrong, and which remedy helps.
    start : Start
        What was examined.
    lengths : tuple of Length
        The measurement with shorter and longer sequences beside that of the configuration.
    threshold : ClipThresholds
        Where to clip.
    suggestions : Suggestions
        Changes of the start.
    trials : tuple of Trial
        The training as configured, then one with each remedy.

    Examples
    --------
    >>> from gradcore.diagnosis import configure, study
    >>> found = study(configure("sunspots", steps=5, hidden=8))
    >>> found.trials[0].name, len(found.trials[0].held_out_losses)
    ('as configured', 3)
    """

    verdict: Outcome
    start: Start
    lengths: tuple[Length, ...]
    threshold: ClipThresholds
    suggestions: Suggestions
    trials: tuple[Trial, ...]

    def _given(self) -> dict[str, Any]:
        return {"data": dict(self.start.data), "baselines": dict(self.start.baselines)}

    def _repr_html_(self) -> str:
        rows = [
            (trial.name, number(trial.held_out_loss), number(trial.spread), number(trial.loss)) for trial in self.trials
        ]
        head = ("trial", "loss held out", "spread", "loss trained on")
        return super()._repr_html_() + html_table(rows, header=head)


def _plain(value: Any) -> Any:
    if isinstance(value, History):
        return {"loss": value.loss, "grad_norm": value.grad_norm, "clipped": value.clipped}
    if isinstance(value, Finding):
        return value.to_dict()
    if isinstance(value, np.ndarray) and value.dtype.kind == "c":
        return [[v.real, v.imag] for v in value.tolist()]
    if dataclasses.is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
