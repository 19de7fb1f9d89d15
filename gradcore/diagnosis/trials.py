"""The parts of a diagnosis that come from training, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gradcore.spectral.verdict import Verdict
from gradcore.training.history import History
from gradcore.training.monitor import Finding

__all__ = ["ClipThresholds", "Conclusion", "Outcome", "Suggestion", "Suggestions", "Trial"]

Kind = Literal["explodes", "vanishes", "stable", "diverged", "nothing_to_learn"]


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
    >>> from gradcore.diagnosis.trials import Suggestion
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
    >>> from gradcore.diagnosis.trials import Suggestions
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
    lr : float or None
        Learning rate; None if the optimizer is the caller's own.
    loss : float
        Mean of the last tenth of the steps, on what is trained on.
    held_out_losses : tuple of float
        Loss after training on the sequences held out, for each seed of weights and batches.
    largest_norm : float
        The largest finite gradient norm, before clipping.
    clipped_steps, nonfinite_steps : int
        Number of steps that were clipped, and whose loss or norm was not finite.
    seconds : float
        How long it took.
    findings : tuple of Finding
        What `GradientMonitor` reported.
    history : History
        The whole course with the first seed, as are `loss` and all that follows it.
    python : str
        Python that repeats that run.
    accuracies : tuple of float
        Share of the labels held out that is right, for each seed; empty where targets are values.

    Attributes
    ----------
    held_out_loss : float
        Mean of `held_out_losses`.
    spread : float
        Their standard deviation; 0 if there is one.
    accuracy : float or None
        Mean of `accuracies`.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.stages import train
    >>> config = Config("adding", steps=5)
    >>> trial = train(config.problem(task_of(config)), "as configured", {}, seeds=[0])
    >>> trial.max_norm, trial.nonfinite_steps, len(trial.history)
    (None, 0, 5)
    """

    name: str
    changes: dict[str, Any]
    max_norm: float | None
    step_clip: float | None
    lr: float | None
    loss: float
    held_out_losses: tuple[float, ...]
    largest_norm: float
    clipped_steps: int
    nonfinite_steps: int
    seconds: float
    findings: tuple[Finding, ...]
    history: History
    python: str
    accuracies: tuple[float, ...] = ()
    held_out_loss: float = field(init=False)
    spread: float = field(init=False)
    accuracy: float | None = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.held_out_losses)
        mean = sum(self.held_out_losses) / n
        variance = sum((loss - mean) ** 2 for loss in self.held_out_losses) / max(n - 1, 1)
        object.__setattr__(self, "held_out_loss", mean)
        object.__setattr__(self, "spread", variance**0.5)
        object.__setattr__(self, "accuracy", sum(self.accuracies) / n if self.accuracies else None)


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
    >>> from gradcore.diagnosis.trials import ClipThresholds
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
    >>> from gradcore.diagnosis.trials import Conclusion
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
    summary : str
        Finding and advice in two short sentences.
    remedy : str or None
        Name of the trial that did better than the configuration beyond the spread; None if there is none.
    loss : float
        Loss of that trial, or of the configuration, on the sequences held out.
    python : str
        Python that repeats it.

    Examples
    --------
    >>> from gradcore.diagnosis.trials import Outcome
    >>> told = "The gradient explodes.", "Clip it.", "The gradient explodes. Clip it."
    >>> outcome = Outcome("explodes", *told, "norm clipping at 2.5", 0.02, "...")
    >>> print(outcome)
    explodes: The gradient explodes. Clip it.
    >>> outcome.remedy
    'norm clipping at 2.5'
    """

    summary: str
    remedy: str | None
    loss: float
    python: str
