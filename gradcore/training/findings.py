"""What a monitor finds, and when it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gradcore._base.check import check_choice, check_int, check_names, check_number
from gradcore._base.files import jsonable

__all__ = ["SEVERITIES", "Finding", "Thresholds"]

SEVERITIES = ("critical", "high", "moderate", "info")


@dataclass(frozen=True)
class Thresholds:
    """Set when a `GradientMonitor` speaks.

    Parameters
    ----------
    window : int
        Number of recent steps whose losses, norms and clipped steps the newest one is compared with.
    warmup : int
        Number of steps before a step is compared with the recent ones.
    patience : int
        Number of steps in a row for which a condition has to hold where a single one may be chance.
    spike_z : float
        A gradient norm is a spike when its logarithm is this many (robust) standard deviations above the median of the
        window. The deviation counts as at least 0.25, so that 6 means a factor of 4.5 or more.
    usual_norm : (float, float)
        Range of usual gradient norms.
    high_norm : float
        A gradient norm above this is reported at once.
    diverged : float
        A run has diverged when its loss is this many times the one at the start.
    oscillation : float
        The loss oscillates when it turns at least every second step and typically changes from one step to the next by
        this many times its typical value, because of the steps rather than the batches.
    rise : float
        The loss (the median of ten steps) rises when it reaches this many times its best, and more than single batches
        explain; a run that had halved its loss before has then become unstable.
    raised : float
        Steps raise the loss when this share of them does, of those after which their batch is looked at again.
    learning_steps : int
        Number of steps within which the loss has to fall, if the run is to be called one that learns.
    progress : float
        Share of the loss by which it has to fall, and by which outputs have to fit their own sample better than others.
    small_change, large_change : float
        Steps are tiny (huge) when after `learning_steps` the weights have changed by less (more) than this many times
        their size at the start, and the loss has not halved.
    dead : float
        Share of a layer's rectified units that are 0 for a whole batch, from which they are reported.
    data_scale : float
        Root mean square of inputs and targets above which they are reported.
    max_weight : float
        Weights of larger magnitude are reported.
    vanish_ratio, explode_ratio : float
        Gradients vanish (explode) when their norm at the first time step or layer is below (above) this many times the
        norm at the last one.
    always_clipped : float
        Share of clipped steps in a window above which the clip threshold is too low.
    never_clipped_steps : int
        Number of steps without any clipping after which the clip threshold has no effect.
    skipped : float
        Share of skipped steps in a window from which they are reported, if there are at least three.
    check_weights_every, check_outputs_every : int
        Number of steps between two looks at the weights and at the outputs.

    Examples
    --------
    >>> from gradcore.training.monitor import GradientMonitor, Thresholds
    >>> monitor = GradientMonitor(Thresholds(usual_norm=(0.1, 50.0)))
    >>> monitor.update(0, 0.9, grad_norm=30.0)
    []
    """

    window: int = 50
    warmup: int = 20
    patience: int = 5
    spike_z: float = 6.0
    usual_norm: tuple[float, float] = (0.1, 10.0)
    high_norm: float = 1e3
    diverged: float = 1e3
    oscillation: float = 1.0
    rise: float = 3.0
    raised: float = 0.9
    learning_steps: int = 200
    progress: float = 0.05
    small_change: float = 5e-3
    large_change: float = 10.0
    dead: float = 0.75
    data_scale: float = 100.0
    max_weight: float = 1e6
    vanish_ratio: float = 1e-3
    explode_ratio: float = 1e3
    always_clipped: float = 0.9
    never_clipped_steps: int = 100
    skipped: float = 0.1
    check_weights_every: int = 10
    check_outputs_every: int = 10

    def __post_init__(self) -> None:
        least = {"window": 10, "warmup": 2}
        bounds: dict[str, dict[str, float]] = {
            "diverged": {"above": 1},
            "rise": {"above": 1},
            "raised": {"above": 0, "most": 1},
            "progress": {"above": 0, "most": 1},
            "dead": {"above": 0, "most": 1},
            "vanish_ratio": {"least": 0, "most": 1},
            "explode_ratio": {"least": 1},
            "always_clipped": {"above": 0, "most": 1},
            "skipped": {"above": 0, "most": 1},
        }
        for name, value in vars(self).copy().items():
            checked: Any
            if name == "usual_norm":
                if not isinstance(value, (tuple, list)) or len(value) != 2:
                    raise TypeError(f"usual_norm: expected a pair (low, high), got {type(value).__name__}")
                low = check_number("usual_norm[0]", value[0], least=0)
                checked = low, check_number("usual_norm[1]", value[1], least=low)
            elif isinstance(getattr(type(self), name), int):
                checked = check_int(name, value, least=least.get(name, 1))
            else:
                checked = check_number(name, value, **bounds.get(name, {"above": 0}))
            object.__setattr__(self, name, checked)


@dataclass
class Finding:
    """Tell what went wrong; there is one for every kind and place, however often it happens.

    Parameters
    ----------
    kind : str
        The kind, such as "nan_loss"; `ADVICE` lists all of them.
    where : str
        The layer and direction, such as "0.l0_reverse", or the empty string for the whole model.
    severity : str
        "critical", "high", "moderate" or "info": the worst so far.
    step : int
        The step where it began.
    last_step : int
        The step where it was last seen.
    count : int
        The number of steps at which it happened (of looks, for what is not looked at in every step).
    numbers : dict
        The values behind it, from where it was worst.
    message : str
        What happened, in one sentence.
    advice : str
        What to do.
    follows : str
        The kind of the finding that it follows from; the empty string for a cause.

    Examples
    --------
    >>> from gradcore.training.monitor import GradientMonitor
    >>> (finding,) = GradientMonitor().update(0, float("inf"), grad_norm=1.0)
    >>> print(finding)
    CRITICAL: inf_loss (step 0). The loss became inf; none was finite before.
    """

    kind: str
    where: str
    severity: str
    step: int
    last_step: int
    count: int
    numbers: dict[str, Any]
    message: str
    advice: str
    follows: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in JSON's own types.

        Returns
        -------
        dict
            The fields by name; numbers that are not finite as "NaN", "Infinity" and "-Infinity".

        Examples
        --------
        >>> from gradcore.training.monitor import GradientMonitor
        >>> (finding,) = GradientMonitor().update(0, float("inf"), grad_norm=1.0)
        >>> finding.to_dict()["numbers"]
        {'loss': 'Infinity', 'last_finite_loss': 'NaN'}
        """
        return {field.name: jsonable(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Return the finding with these fields.

        Parameters
        ----------
        values : mapping
            The fields by name, such as ``dataclasses.asdict`` gives them.

        Returns
        -------
        Finding
            The finding.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a name is missing or unknown, or a value has another type.

        Examples
        --------
        >>> from dataclasses import asdict
        >>> from gradcore.training.monitor import Finding, GradientMonitor
        >>> (finding,) = GradientMonitor().update(0, float("inf"), grad_norm=1.0)
        >>> Finding.from_dict(asdict(finding)) == finding
        True
        """
        check_names("values", values, [field.name for field in fields(cls)])
        for name in ("kind", "where", "message", "advice", "follows"):
            if not isinstance(values[name], str):
                raise TypeError(f"{name}: expected text, got {type(values[name]).__name__}")
        check_choice("severity", values["severity"], SEVERITIES)
        if not isinstance(values["numbers"], Mapping):
            raise TypeError(f"numbers: expected a mapping, got {type(values['numbers']).__name__}")
        counts = {name: check_int(name, values[name]) for name in ("step", "last_step", "count")}
        return cls(**{**values, **counts, "numbers": dict(values["numbers"])})

    def seen(self) -> str:
        """Say when it was seen.

        Returns
        -------
        str
            Such as "step 3" or "steps 3 to 9, 4 times".

        Examples
        --------
        >>> from gradcore.training.monitor import GradientMonitor
        >>> (finding,) = GradientMonitor().update(0, float("inf"), grad_norm=1.0)
        >>> finding.seen()
        'step 0'
        """
        return f"step {self.step}" if self.count == 1 else f"steps {self.step} to {self.last_step}, {self.count} times"

    def __str__(self) -> str:
        place = f" in {self.where}" if self.where else ""
        return f"{self.severity.upper()}: {self.kind}{place} ({self.seen()}). {self.message}"
