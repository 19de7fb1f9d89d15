"""The parts of a diagnosis, as plain data."""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gradcore._base.check import Array
from gradcore._base.files import jsonable
from gradcore._base.html import html_table
from gradcore.diagnosis.config import Config
from gradcore.diagnosis.wording import number, per_step
from gradcore.spectral import Condition, LayerGrowth
from gradcore.spectral.verdict import Verdict
from gradcore.training.history import History
from gradcore.training.monitor import Finding

__all__ = [
    "ClipThresholds",
    "Comparison",
    "Conclusion",
    "Diagnosis",
    "LayerRates",
    "Matrix",
    "Measurement",
    "Outcome",
    "Spectrum",
    "Start",
    "Study",
    "Suggestion",
    "Suggestions",
    "TimeForecast",
    "Trial",
]

Kind = Literal["explodes", "vanishes", "stable", "diverged", "nothing_to_learn"]


@dataclass(frozen=True)
class Start:
    """What is about to be examined.

    Parameters
    ----------
    config : Config
        What was asked for.
    task : str
        Name of the task.
    baseline : float
        Loss of the best constant answer.
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
    >>> import gradcore
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.parts import Start
    >>> config = Config("adding")
    >>> task = task_of(config)
    >>> size = config.problem(task).model().flat_params.size
    >>> start = Start(config, task.name, task.baseline, task.input_size, task.output_size, 99, size, gradcore.info())
    >>> start.config.source, start.n_parameters
    ('adding', 4417)
    """

    config: Config
    task: str
    baseline: float
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
        Growth of each row, natural logarithm per step back; NaN where there is no gradient.
    rate : float
        The largest of them.
    factor : float
        By how much the norm changes over the horizon at that rate.
    verdict : {"explodes", "vanishes", "stable"}
        What that amounts to.

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


@dataclass(frozen=True)
class Suggestion:
    """A change of the start that may let gradients last, and what it does to them before training.

    Parameters
    ----------
    name : str
        What it is, in words.
    changes : dict
        The options of `Config` that it sets.
    reason : str
        Why.
    predicted, measured : float
        Rate of the changed model: forecast and measured.
    factor : float
        Forecast change of the gradient's norm over the sequence.
    verdict : {"explodes", "vanishes", "stable"}
        What the forecast amounts to.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import Suggestion
    >>> suggestion = Suggestion("gain 1.4", {"gain": 1.4}, "to keep the gradient's norm", 0.001, 0.002, 1.1, "stable")
    >>> suggestion.changes, suggestion.verdict
    ({'gain': 1.4}, 'stable')
    """

    name: str
    changes: dict[str, Any]
    reason: str
    predicted: float
    measured: float
    factor: float
    verdict: Verdict


@dataclass(frozen=True)
class Suggestions:
    """Changes of the start.

    Parameters
    ----------
    tried : tuple of Suggestion
        Those that become trials.
    missing : tuple of str
        Why there is none where there might have been one.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import Suggestions
    >>> Suggestions((), ("The configured gain is the one that is forecast to keep the gradient's norm.",)).tried
    ()
    """

    tried: tuple[Suggestion, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A training run.

    Parameters
    ----------
    name : str
        The remedy, or "as configured".
    changes : dict
        What the remedy sets.
    max_norm, step_clip : float or None
        Clipping thresholds.
    loss : float
        Mean of the last tenth of the steps.
    largest_norm : float
        The largest finite gradient norm, before clipping.
    clipped_steps, nonfinite_steps : int
        Number of steps that were clipped, and whose loss or norm was not finite.
    seconds : float
        How long it took.
    findings : tuple of Finding
        What `GradientMonitor` reported.
    history : History
        The whole course.
    python : str
        Python that repeats the run.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.stages import train
    >>> config = Config("adding", steps=5)
    >>> trial = train(config.problem(task_of(config)), "as configured", {})
    >>> trial.max_norm, trial.nonfinite_steps, len(trial.history)
    (None, 0, 5)
    """

    name: str
    changes: dict[str, Any]
    max_norm: float | None
    step_clip: float | None
    loss: float
    largest_norm: float
    clipped_steps: int
    nonfinite_steps: int
    seconds: float
    findings: tuple[Finding, ...]
    history: History
    python: str


@dataclass(frozen=True)
class ClipThresholds:
    """Where to clip, and the early norms that say so.

    Parameters
    ----------
    max_norm : float
        Threshold of the norm of all gradients.
    step_clip : float
        Threshold of a sequence's gradient at each time step.
    reason : str
        Why `max_norm` is what it is.
    steps_seen : int
        Number of early steps.
    norm_quantiles : tuple of float
        Their norms of all gradients: quantiles at 5 %, 50 % and 95 %.
    output_norm : float
        Median norm of the output layer's gradient.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import ClipThresholds
    >>> thresholds = ClipThresholds(2.5, 0.1, "the 95 % quantile of the early norms", 60, (0.4, 0.9, 2.5), 1.3)
    >>> thresholds.max_norm == thresholds.norm_quantiles[-1]
    True
    """

    max_norm: float
    step_clip: float
    reason: str
    steps_seen: int
    norm_quantiles: tuple[float, ...]
    output_norm: float


@dataclass(frozen=True)
class Conclusion:
    """What is wrong, and what to do.

    Parameters
    ----------
    kind : {"explodes", "vanishes", "stable", "diverged", "nothing_to_learn"}
        The finding in one word.
    finding : str
        The finding in a sentence.
    advice : str
        What to do, in a sentence.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import Conclusion
    >>> print(Conclusion("stable", "The gradient keeps its size.", "Change nothing."))
    stable: The gradient keeps its size. Change nothing.
    """

    kind: Kind
    finding: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.finding} {self.advice}"


@dataclass(frozen=True)
class Outcome(Conclusion):
    """A conclusion from trials.

    Parameters
    ----------
    kind : {"explodes", "vanishes", "stable", "diverged", "nothing_to_learn"}
        The finding in one word.
    finding : str
        The finding in a sentence.
    advice : str
        What to do, in a sentence.
    remedy : str or None
        Name of the trial that did clearly better than the configuration; None if there is none.
    loss : float
        Loss of that trial, or of the configuration.
    python : str
        Python that repeats it.

    Examples
    --------
    >>> from gradcore.diagnosis.parts import Outcome
    >>> outcome = Outcome("explodes", "The gradient explodes.", "Clip it.", "norm clipping at 2.5", 0.02, "...")
    >>> print(outcome)
    explodes: The gradient explodes. Clip it.
    >>> outcome.remedy
    'norm clipping at 2.5'
    """

    remedy: str | None
    loss: float
    python: str


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
        document: dict[str, Any] = jsonable({"format": "gradcore.Diagnosis", "version": 1} | fields)
        return document


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
    >>> found.verdict.kind in ("explodes", "vanishes"), found.trials[0].name
    (True, 'as configured')
    """

    verdict: Outcome
    start: Start
    threshold: ClipThresholds
    suggestions: Suggestions
    trials: tuple[Trial, ...]

    def _repr_html_(self) -> str:
        rows = [
            (trial.name, number(trial.loss), number(trial.largest_norm), f"{trial.clipped_steps}")
            for trial in self.trials
        ]
        head = ("trial", "loss", "largest norm", "clipped steps")
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
