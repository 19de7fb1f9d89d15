"""Watch a training run and say in words what goes wrong with its gradients, since when, and what to do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gradcore._check import Array, check_int, check_number, check_real, check_reals
from gradcore._files import jsonable

SEVERITIES = ("critical", "high", "moderate", "info")

# What to do, by kind of finding.
ADVICE = {
    "nan_loss": (
        "Go back to the last good weights, lower the learning rate, and clip the gradient norm; look for a "
        "logarithm, division or square root of zero in the loss."
    ),
    "inf_loss": "Lower the learning rate, clip the gradient norm, and scale inputs and targets to about 1.",
    "nonfinite_gradient": (
        "Clip the gradient norm below the values seen before this step, or step_clip inside the backward pass; "
        "keep nonfinite='skip', so that such a step changes no weight."
    ),
    "oscillating_loss": "Lower the learning rate (by 3 to 10 times); where batches are tiny, make them larger.",
    "unstable_after_progress": (
        "Clip the gradient norm slightly above its usual value, lower the learning rate, and go back to weights "
        "from before this step."
    ),
    "large_weights": (
        "Go back to earlier weights, lower the learning rate, add weight decay, and clip the gradient norm."
    ),
    "nonfinite_weights": (
        "This model is lost: go back to earlier weights, and train with max_norm and nonfinite='skip'."
    ),
    "gradient_spike": "Clip the gradient norm slightly above its usual value.",
    "large_gradients": (
        "Clip the gradient norm (1 to 5 is usual for recurrent networks), scale inputs and targets to about 1, and "
        "check the initialisation."
    ),
    "small_gradients": (
        "Nothing as long as the loss falls; otherwise raise the learning rate or check the initialisation."
    ),
    "nonfinite_outputs": "Go back to earlier weights; clip the gradient norm and lower the learning rate.",
    "constant_outputs": (
        "Check that the inputs reach the model and differ, lower the learning rate, and choose another "
        "initialisation or activation (units that are dead or saturated let nothing through)."
    ),
    "frozen_outputs": (
        "Check that the optimizer holds this model's parameters, that its steps are not all skipped, and that the "
        "learning rate is not far too small."
    ),
    "vanishing_in_time": (
        "Use an LSTM (forget-gate bias of 1 or more) or a GRU, orthogonal recurrent matrices, or shorter "
        "sequences: what happened early hardly changes the weights."
    ),
    "exploding_in_time": (
        "Clip the gradient norm, or step_clip inside the backward pass; orthogonal recurrent matrices or a smaller "
        "gain remove the cause."
    ),
    "vanishing_in_layers": (
        "Use an initialisation that fits the activation (He for relu, Xavier for tanh), relu instead of sigmoid, "
        "residual connections or normalisation, or fewer layers."
    ),
    "exploding_in_layers": (
        "Use an initialisation that fits the activation, with a smaller gain; clip the gradient norm."
    ),
    "always_clipping": "Raise max_norm, or lower the learning rate: the threshold now sets the length of every step.",
    "never_clipping": "Lower max_norm towards the largest norms seen, or leave clipping out.",
    "skipped_steps": (
        "Clip inside the backward pass with step_clip, lower the learning rate, or use float64: skipped batches "
        "teach nothing."
    ),
}


@dataclass
class Finding:
    """Something that went wrong, once for every kind and place however often it happens.

    Attributes
    ----------
    kind : str
        What it is, such as "nan_loss"; `ADVICE` lists all kinds.
    where : str
        The layer and direction, such as "0.l0_reverse", or the empty string for the whole model.
    severity : str
        "critical", "high", "moderate" or "info"; the worst it has been.
    step : int
        Where it began.
    last_step : int
        Where it was seen last.
    count : int
        At how many steps (or checks, for what is not looked at in every step) it was seen.
    numbers : dict
        The values behind it, from where it was worst.
    message : str
        What happened, in one sentence.
    advice : str
        What to do.
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

    def to_dict(self) -> dict[str, Any]:
        """The fields in JSON's own types; non-finite numbers as "NaN", "Infinity" and "-Infinity"."""
        fields: dict[str, Any] = jsonable(asdict(self))
        return fields

    def __str__(self) -> str:
        place = f" in {self.where}" if self.where else ""
        seen = f"step {self.step}" if self.count == 1 else f"steps {self.step} to {self.last_step}, {self.count} times"
        return f"{self.severity.upper()}: {self.kind}{place} ({seen}). {self.message}"


def recurrent_profiles(tape: Any) -> Iterator[tuple[str, bool, Array]]:
    """Yield the gradient norms over time of every recurrent layer and direction in a tape.

    Parameters
    ----------
    tape : Tape or SequentialTape
        The tape of a recurrent layer, or of a model that holds some, after its backward pass.

    Yields
    ------
    name : str
        Such as "l0", "l1_reverse", or "2.l0" for the member of a model, as in the names of parameters.
    reverse : bool
        Whether the direction runs from the last time step to the first.
    dh_norm : ndarray, (T,), float64
        L2 norm over batch and units of dL/dh_t at every time step.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.monitor import recurrent_profiles
    >>> layer = gradcore.GRU(3, 4, bidirectional=True)
    >>> y, tape = layer.forward(np.ones((6, 2, 3), np.float32))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> [(name, reverse, len(norms)) for name, reverse, norms in recurrent_profiles(tape)]
    [('l0', False, 6), ('l0_reverse', True, 6)]
    """
    telemetry = getattr(tape, "telemetry", None)
    dh_norm = getattr(telemetry, "dh_norm", None)
    if dh_norm is not None:
        directions = getattr(telemetry, "num_directions", 1)
        for index, row in enumerate(np.asarray(dh_norm, np.float64)):
            reverse = index % directions == 1
            yield f"l{index // directions}{'_reverse' * reverse}", reverse, row
    for index, member in enumerate(getattr(tape, "tapes", ())):
        for name, reverse, row in recurrent_profiles(member):
            yield f"{index}.{name}", reverse, row


def _median(values: Any) -> float:
    """The median of a few numbers, without the overhead of an array."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def _deviation(values: Any, centre: float) -> float:
    """The standard deviation that the median absolute deviation from `centre` suggests for normal values."""
    return 1.4826 * _median([abs(value - centre) for value in values])


class GradientMonitor:
    """Turn a run into findings, each with a severity, the step where it began, the numbers behind it and what to do.

    Hand it to `gradcore.fit`, or call `update` after every step of your own loop and `finish` at the end. It reads and
    never changes anything, and neither raises nor warns when what it reads is not finite. A step costs some tens of
    microseconds; weights and outputs are looked at every few steps only.

    Parameters
    ----------
    window : int
        How many steps make the running history of losses, norms and clipped steps.
    warmup : int
        How many steps are seen before a step is judged by the history.
    patience : int
        How many steps in a row a condition has to hold, where a single step may be chance.
    spike_z : float
        A gradient norm is a spike when its logarithm is this many (robust) standard deviations above the median of the
        window; the deviation counts as at least 0.25, so that 6 means a factor of 4.5 or more.
    usual_norm : (float, float)
        Gradient norms in this range are usual.
    high_norm : float
        A gradient norm above this is reported at once.
    oscillation : float
        The loss oscillates when it turns at least every second step and typically changes from one step to the next by
        this many times its typical value.
    rise : float
        A run has become unstable when its loss (the median of ten steps) rises to this many times its best after it had
        halved, and by more than the noise of single batches explains.
    max_weight : float
        Weights of larger magnitude are reported.
    vanish_ratio, explode_ratio : float
        Gradients vanish (explode) when their norm at the first step or layer is below (above) this many times the norm
        at the last one.
    always_clipped : float
        Share of clipped steps in a window from which the threshold is too low.
    never_clipped_steps : int
        A threshold that has not clipped in at least so many steps is of no use.
    skipped : float
        Share of skipped steps in a window from which they are reported (three at least).
    check_weights_every, check_outputs_every : int
        Steps between two looks at the weights (outputs).

    Notes
    -----
    Losses are taken to be positive where their rise is judged. A loss at every time step adds gradient everywhere, so
    that gradients which vanish in time show only where the loss is on the last steps; explosion shows in both.

    Examples
    --------
    >>> from gradcore.monitor import GradientMonitor
    >>> monitor = GradientMonitor()
    >>> for step, loss in enumerate([0.9, 0.7, float("nan")]):
    ...     new = monitor.update(step, loss, grad_norm=1.0)
    >>> [(finding.kind, finding.severity, finding.step) for finding in new]
    [('nan_loss', 'critical', 2)]
    """

    def __init__(
        self,
        *,
        window: int = 50,
        warmup: int = 20,
        patience: int = 5,
        spike_z: float = 6.0,
        usual_norm: tuple[float, float] = (0.1, 10.0),
        high_norm: float = 1e3,
        oscillation: float = 1.0,
        rise: float = 3.0,
        max_weight: float = 1e6,
        vanish_ratio: float = 1e-3,
        explode_ratio: float = 1e3,
        always_clipped: float = 0.9,
        never_clipped_steps: int = 100,
        skipped: float = 0.1,
        check_weights_every: int = 10,
        check_outputs_every: int = 10,
    ) -> None:
        self.window = check_int("window", window, least=10)
        self.warmup = check_int("warmup", warmup, least=2)
        self.patience = check_int("patience", patience, least=1)
        self.spike_z = check_number("spike_z", spike_z, above=0)
        if not isinstance(usual_norm, (tuple, list)) or len(usual_norm) != 2:
            raise TypeError(f"usual_norm: expected a pair (low, high), got {type(usual_norm).__name__}")
        self.usual_norm = (
            check_number("usual_norm[0]", usual_norm[0], least=0),
            check_number("usual_norm[1]", usual_norm[1], least=usual_norm[0]),
        )
        self.high_norm = check_number("high_norm", high_norm, above=0)
        self.oscillation = check_number("oscillation", oscillation, above=0)
        self.rise = check_number("rise", rise, above=1)
        self.max_weight = check_number("max_weight", max_weight, above=0)
        self.vanish_ratio = check_number("vanish_ratio", vanish_ratio, least=0, most=1)
        self.explode_ratio = check_number("explode_ratio", explode_ratio, least=1)
        self.always_clipped = check_number("always_clipped", always_clipped, above=0, most=1)
        self.never_clipped_steps = check_int("never_clipped_steps", never_clipped_steps, least=1)
        self.skipped = check_number("skipped", skipped, above=0, most=1)
        self.check_weights_every = check_int("check_weights_every", check_weights_every, least=1)
        self.check_outputs_every = check_int("check_outputs_every", check_outputs_every, least=1)
        self._thresholds = dict(vars(self))

        self.findings: list[Finding] = []
        self.n_steps = 0
        self.n_clipped = 0
        self.n_skipped = 0
        self._n_thresholded = 0  # steps with a threshold to clip at
        self._by_place: dict[tuple[str, str], tuple[Finding, float]] = {}
        self._new: list[Finding] = []
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        self._losses: deque[float] = deque(maxlen=self.window)  # the finite ones
        self._loss_steps: deque[int] = deque(maxlen=self.window)  # and their steps
        self._norms: deque[float] = deque(maxlen=self.window)  # the finite, positive ones
        self._clipped: deque[bool] = deque(maxlen=self.window)
        self._skipped: deque[bool] = deque(maxlen=self.window)
        self._reference = math.nan  # the loss at the start: median of the first `warmup` ones
        self._best = math.inf  # the lowest median of ten losses
        self._largest_norm = 0.0
        self._outputs: Array | None = None
        self._model: Any = None

    def update(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        model: Any = None,
        tape: Any = None,
        y: Array | None = None,
        *,
        max_norm: float | None = None,
    ) -> list[Finding]:
        """Take in one step.

        Parameters
        ----------
        step : int
            Its number.
        loss : float
            Its loss.
        grad_norm : float or GradNorm
            The norm before clipping; a GradNorm also tells what was clipped, skipped and not finite.
        model : optional
            For its weights: anything with `flat_params` and `params`.
        tape : optional
            Of the model's forward pass or of one of its layers', after `backward`: for the norms over time steps and
            layers.
        y : ndarray, optional
            What the model put out; the last axis holds the features.
        max_norm : float, optional
            The threshold of this step, None without clipping.

        Returns
        -------
        list of Finding
            Those that are new; what was found before is only brought up to date.
        """
        step, loss, norm = check_int("step", step), check_real("loss", loss), check_real("grad_norm", grad_norm)
        if max_norm is not None:
            max_norm = check_real("max_norm", max_norm)
        if y is not None:
            y = check_reals("y", y)
        self._new = []
        if model is not None:
            self._model = model
        with np.errstate(all="ignore"):
            self._check_loss(step, loss)
            self._check_norm(step, norm)
            self._check_gradient(step, grad_norm, tape)
            self._check_clipping(step, norm, grad_norm, max_norm)
            if tape is not None:
                self._check_time(step, tape)
            self._check_layers(step, grad_norm, tape)
            if self.n_steps % self.check_weights_every == 0:
                self._check_weights(step, model)
            if y is not None and self.n_steps % self.check_outputs_every == 0:
                self._check_outputs(step, norm, y)
        self.n_steps += 1
        return self._new

    def finish(self) -> list[Finding]:
        """Look once more at the weights, and at what only the whole run tells.

        Returns
        -------
        list of Finding
            Those that are new.
        """
        self._new = []
        step = max(self.n_steps - 1, 0)
        with np.errstate(all="ignore"):
            self._check_weights(step, self._model)
        if self._n_thresholded >= self.never_clipped_steps and self.n_clipped == 0:
            numbers = {"steps": self._n_thresholded, "largest_norm": self._largest_norm}
            self._report(
                "never_clipping",
                "info",
                step,
                numbers,
                f"None of {self._n_thresholded} steps was clipped; the largest norm was {self._largest_norm:.3g}.",
            )
        return self._new

    def summary(self) -> str:
        """All findings as text, the worst first."""
        if not self.findings:
            return f"No findings in {self.n_steps} steps."
        ordered = sorted(self.findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.step))
        return "\n".join(f"{finding}\n    {finding.advice}" for finding in ordered)

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON's own types; non-finite numbers as "NaN", "Infinity" and "-Infinity"."""
        report: dict[str, Any] = jsonable(
            {
                "n_steps": self.n_steps,
                "n_clipped": self.n_clipped,
                "n_skipped": self.n_skipped,
                "thresholds": self._thresholds,
                "findings": [finding.to_dict() for finding in self.findings],
            }
        )
        return report

    # ---- keeping findings --------------------------------------------------------------------------------------------

    def _report(
        self,
        kind: str,
        severity: str,
        step: int,
        numbers: dict[str, Any],
        message: str,
        *,
        where: str = "",
        began: int | None = None,
        badness: float = 0.0,
        times: int = 1,
    ) -> None:
        """Open a finding, or count it once more; the numbers stay those of the greatest `badness`."""
        known = self._by_place.get((kind, where))
        if known is None:
            start = step if began is None else began
            finding = Finding(kind, where, severity, start, step, times, numbers, message, ADVICE[kind])
            self.findings.append(finding)
            self._new.append(finding)
            self._by_place[kind, where] = finding, badness
            return
        finding, worst = known
        finding.last_step = step
        finding.count += 1
        finding.severity = min(finding.severity, severity, key=SEVERITIES.index)
        if badness > worst:
            finding.numbers, finding.message = numbers, message
            self._by_place[kind, where] = finding, badness

    def _lasting(self, kind: str, where: str, step: int, condition: bool, patience: int) -> tuple[int, int] | None:
        """Where the condition began and how often it has held in a row, once that is `patience` times; else None."""
        if not condition:
            self._held.pop((kind, where), None)
            return None
        began, times = self._held.get((kind, where), (step, 0))
        self._held[kind, where] = began, times + 1
        return (began, times + 1) if times + 1 >= patience else None

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def _check_loss(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            kind = "nan_loss" if math.isnan(loss) else "inf_loss"
            before = self._losses[-1] if self._losses else math.nan
            self._report(
                kind,
                "critical",
                step,
                {"loss": loss, "last_finite_loss": before},
                f"The loss became {loss}; the last finite one was {before:.3g}.",
            )
            improved = self._best < 0.5 * self._reference
            lost = self._lasting("unstable_after_progress", "not finite", step, improved, self.patience)
            if lost:
                self._report_unstable(step, *lost, loss, math.inf, lost=True)
            return
        self._lasting("unstable_after_progress", "not finite", step, False, self.patience)
        self._losses.append(loss)
        self._loss_steps.append(step)
        if math.isnan(self._reference):
            if len(self._losses) >= min(self.warmup, self.window):
                self._reference = _median(self._losses)
            return
        losses = list(self._losses)
        self._check_oscillation(step, losses)

        # Noise of single batches: the median of ten losses varies by about three times it over a long run.
        level = _median(losses[-10:])
        logs = [math.log(value) for value in losses if value > 0]
        noise = _median([abs(b - a) for a, b in pairwise(logs)]) if len(logs) > 1 else 0.0
        rise = level / self._best if self._best > 0 else math.nan
        unstable = self._best < 0.5 * self._reference and rise >= max(self.rise, math.exp(min(4 * noise, 700.0)))
        lasting = self._lasting("unstable_after_progress", "", step, unstable, 1)
        if lasting:
            self._report_unstable(step, *lasting, level, rise, lost=level >= self._reference)
        self._best = min(self._best, level)

    def _report_unstable(self, step: int, began: int, times: int, level: float, rise: float, *, lost: bool) -> None:
        self._report(
            "unstable_after_progress",
            "high" if lost else "moderate",
            step,
            {"loss_at_start": self._reference, "best_loss": self._best, "loss": level, "rise": rise},
            f"After falling from {self._reference:.3g} to {self._best:.3g} the loss rose to {level:.3g}.",
            began=began,
            badness=rise,
            times=times,
        )

    def _check_oscillation(self, step: int, losses: list[float]) -> None:
        if len(losses) < self.window:
            return
        changes = [b - a for a, b in pairwise(losses)]
        typical_change = _median([abs(change) for change in changes])
        typical = _median([abs(loss) for loss in losses])
        turns = sum((a > 0) != (b > 0) for a, b in pairwise(changes)) / (len(changes) - 1)
        # A loss that has come down to a tenth jumps among tiny values, which does no harm.
        wild = (
            turns >= 0.5
            and typical_change >= self.oscillation * typical
            and typical_change > 0
            and typical >= 0.1 * abs(self._reference)
        )
        if self._lasting("oscillating_loss", "", step, wild, self.patience):
            ratio = typical_change / typical if typical > 0 else math.inf
            first = next(i for i, change in enumerate(changes, 1) if abs(change) >= self.oscillation * typical)
            self._report(
                "oscillating_loss",
                "high",
                step,
                {"typical_change": typical_change, "typical_loss": typical, "turns": turns},
                f"From one step to the next the loss typically changes by {typical_change:.3g}, "
                f"{ratio:.2g} times its own value.",
                began=self._loss_steps[first],
                badness=ratio,
            )

    # ---- the gradient norm -------------------------------------------------------------------------------------------

    def _check_norm(self, step: int, norm: float) -> None:
        if not (math.isfinite(norm) and norm >= 0):
            return
        self._largest_norm = max(self._largest_norm, norm)
        low, high = self.usual_norm
        above = self._lasting("large_gradients", "", step, norm > high, self.patience)
        if above or norm > self.high_norm:
            began, times = above or (step, 1)
            self._report(
                "large_gradients",
                "high" if norm > self.high_norm else "moderate",
                step,
                {"grad_norm": norm, "usual_range": [low, high]},
                f"The gradient norm reached {norm:.3g}, where {low:g} to {high:g} is usual.",
                began=began,
                badness=norm,
                times=times,
            )
        below = self._lasting("small_gradients", "", step, norm < low, self.patience)
        if below:
            self._report(
                "small_gradients",
                "info",
                step,
                {"grad_norm": norm, "usual_range": [low, high]},
                f"The gradient norm fell to {norm:.3g}, where {low:g} to {high:g} is usual.",
                began=below[0],
                badness=-norm,
                times=below[1],
            )
        if norm == 0:
            return
        if len(self._norms) >= min(self.warmup, self.window):
            logs = [math.log(value) for value in self._norms]
            centre = _median(logs)
            z = (math.log(norm) - centre) / max(_deviation(logs, centre), 0.25)
            usual = _median(self._norms)
            if z > self.spike_z:
                factor = norm / usual
                self._report(
                    "gradient_spike",
                    "high" if factor >= 100 else "moderate",
                    step,
                    {"grad_norm": norm, "median_norm": usual, "factor": factor, "z": z},
                    f"The gradient norm jumped to {norm:.3g}, {factor:.3g} times the median of the steps before.",
                    badness=factor,
                )
        self._norms.append(norm)

    def _check_gradient(self, step: int, grad_norm: Any, tape: Any) -> None:
        """Entries that are not finite: how many, and where they arose."""
        n_nan, n_inf = int(getattr(grad_norm, "n_nan", 0)), int(getattr(grad_norm, "n_inf", 0))
        if n_nan + n_inf == 0 and math.isfinite(float(grad_norm)):
            return
        numbers: dict[str, Any] = {"grad_norm": float(grad_norm), "n_nan": n_nan, "n_inf": n_inf}
        message = f"The gradient norm became {float(grad_norm)}"
        if n_nan + n_inf:
            message = f"The gradient holds {n_nan} NaN and {n_inf} infinite entries"
        worst = getattr(grad_norm, "worst", None)
        if worst is not None:
            numbers["worst"] = str(worst[0])
            message += f", the first in {worst[0]}"
        for name, first in _first_nonfinite(tape):
            numbers["first_nonfinite"] = {"member": name[:-1], "layer": first[0], "direction": first[1], "t": first[2]}
            message += f"; in the backward pass they arose at time step {first[2]} of recurrent layer {name}l{first[0]}"
        self._report("nonfinite_gradient", "critical", step, numbers, message + ".")

    # ---- clipping and skipping ---------------------------------------------------------------------------------------

    def _check_clipping(self, step: int, norm: float, grad_norm: Any, max_norm: float | None) -> None:
        clipped = bool(getattr(grad_norm, "clipped", False))
        skipped = bool(getattr(grad_norm, "skipped", False))
        self.n_clipped += clipped
        self.n_skipped += skipped
        self._skipped.append(skipped)
        if clipped or max_norm is not None:
            self._n_thresholded += 1
            self._clipped.append(clipped)

        share = sum(self._clipped) / max(len(self._clipped), 1)
        full = len(self._clipped) == self.window
        if self._lasting("always_clipping", "", step, full and share > self.always_clipped, 1):
            usual = _median(self._norms) if self._norms else math.nan
            numbers: dict[str, Any] = {"share": share, "steps": self.window, "median_norm": usual}
            if max_norm is not None:
                numbers["max_norm"] = max_norm
            self._report(
                "always_clipping",
                "moderate",
                step,
                numbers,
                f"{share:.0%} of {self.window} steps in a row were clipped; the median norm was {usual:.3g}"
                + (f" and the threshold {max_norm:.3g}." if max_norm is not None else "."),
                began=step - self.window + 1 + self._clipped.index(True),
                badness=share,
            )

        n = sum(self._skipped)
        share = n / len(self._skipped)
        if n >= 3 and share >= self.skipped:
            began = step - len(self._skipped) + 1 + self._skipped.index(True)
            self._report(
                "skipped_steps",
                "high",
                step,
                {"skipped": n, "steps": len(self._skipped), "share": share},
                f"{n} of the last {len(self._skipped)} steps were skipped because the gradient was not finite.",
                began=began,
                badness=share,
            )

    # ---- weights and outputs -----------------------------------------------------------------------------------------

    def _check_weights(self, step: int, model: Any) -> None:
        flat = getattr(model, "flat_params", None)
        if flat is None or flat.size == 0:
            return
        largest = max(float(flat.max()), -float(flat.min()))
        nonfinite = not math.isfinite(largest) or not math.isfinite(float(flat.min()))
        if not nonfinite and largest <= self.max_weight:
            return
        where = [
            name
            for name, value in model.params.items()
            if value.size and not (np.abs(value) <= (np.finfo(value.dtype).max if nonfinite else self.max_weight)).all()
        ]
        numbers = {"largest": largest, "parameters": where}
        if nonfinite:
            self._report(
                "nonfinite_weights", "critical", step, numbers, f"{where[0]} holds weights that are not finite."
            )
        else:
            self._report(
                "large_weights",
                "high",
                step,
                numbers,
                f"Weights of {where[0]} reached {largest:.3g}, above {self.max_weight:g}.",
                badness=largest,
            )

    def _check_outputs(self, step: int, norm: float, y: Array) -> None:
        if y.size == 0:
            return
        rows = y.reshape(-1, y.shape[-1]) if y.ndim > 1 else y.reshape(-1, 1)
        # In float64, since bools know no difference and small integers a wrong one.
        low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        largest = max(float(high.max()), -float(low.min()))
        if not math.isfinite(largest) or not math.isfinite(float(low.min())):
            bad = int(y.size - np.isfinite(y).sum())
            self._report(
                "nonfinite_outputs",
                "high",
                step,
                {"nonfinite": bad, "outputs": y.size},
                f"{bad} of {y.size} outputs are not finite.",
                badness=bad,
            )
            return
        # Values that differ by a few roundings of float32 are the same.
        spread = float((high - low).max())
        constant = len(rows) > 1 and spread <= 1e-6 * largest
        lasting = self._lasting("constant_outputs", "", step, constant, 2)
        if lasting:
            self._report(
                "constant_outputs",
                "high",
                step,
                {"spread": spread, "largest": largest, "samples": len(rows)},
                f"All {len(rows)} outputs of a batch are the same.",
                began=lasting[0],
                times=lasting[1],
            )
        sample: Array = rows.ravel()[:1024].astype(np.float64)
        before, self._outputs = self._outputs, sample
        same = before is not None and before.shape == sample.shape
        same = same and bool((np.abs(sample - before) <= 1e-7 * largest).all())
        # Outputs that rest because the run has converged are no fault.
        learnt = len(self._losses) > 0 and self._losses[-1] < 0.5 * self._reference
        lasting = self._lasting("frozen_outputs", "", step, same and not learnt, 2)
        if lasting:
            self._report(
                "frozen_outputs",
                "high",
                step,
                {"checks": lasting[1], "grad_norm": norm},
                f"The outputs did not move over {lasting[1] * self.check_outputs_every} steps.",
                began=max(lasting[0] - self.check_outputs_every, 0),
                badness=lasting[1],
                times=lasting[1],
            )

    # ---- norms over time steps and layers ----------------------------------------------------------------------------

    def _check_time(self, step: int, tape: Any) -> None:
        for name, reverse, row in recurrent_profiles(tape):
            # In the order in which the forward pass walks: the backward pass begins at the end.
            walk = row[::-1] if reverse else row
            reached = np.flatnonzero((walk > 0) & (walk < np.inf))
            last = int(reached[-1]) if len(reached) else 0
            if last >= 5:
                self._judge_growth("time", name, step, total=_log_ratio(float(walk[0]), float(walk[last])), n=last)

    def _check_layers(self, step: int, grad_norm: Any, tape: Any) -> None:
        growth = list(_layer_growth(tape))
        per_array = getattr(grad_norm, "per_array", None)
        if tape is None and isinstance(per_array, Mapping):
            norms = [float(norm) for name, norm in per_array.items() if "weight" in str(name)]
            growth = [_log_ratio(*pair) for pair in pairwise(norms)]
        known = [g for g in growth if not math.isnan(g)]  # behind a gradient of zero there is nothing to compare
        self._judge_growth("layers", "", step, total=sum(known) if known else math.nan, n=len(growth))

    def _judge_growth(self, axis: str, where: str, step: int, *, total: float, n: int) -> None:
        """Report a gradient that grows or shrinks too much on its way back over n steps, by exp(total)."""
        unit = "time steps" if axis == "time" else "layers"
        cases = (
            ("vanishing", total < _log_ratio(self.vanish_ratio, 1.0), total < math.log(1e-7)),
            ("exploding", total > math.log(self.explode_ratio), total > math.log(1e6)),
        )
        for kind, condition, severe in cases:
            lasting = self._lasting(f"{kind}_in_{axis}", where, step, condition, self.patience)
            if lasting:
                factor = math.exp(total) if total < 700 else math.inf
                self._report(
                    f"{kind}_in_{axis}",
                    "high" if severe else "moderate",
                    step,
                    {"factor": factor, "log_factor": total, "steps": n, "log_growth_per_step": total / n},
                    f"On its way back over {n} {unit} the gradient norm is multiplied by {factor:.3g}.",
                    where=where,
                    began=lasting[0],
                    badness=abs(total),
                    times=lasting[1],
                )


def _log_ratio(first: float, last: float) -> float:
    """ln(first / last) of two norms: inf where only the first is not finite, NaN where the last gives no measure."""
    if not 0 < last < math.inf:
        return math.nan
    if not math.isfinite(first):
        return math.inf
    return math.log(first) - math.log(last) if first > 0 else -math.inf


def _layer_growth(tape: Any) -> Iterator[float]:
    """ln of what each layer multiplies the norm of the gradient by, from the first layer to the last.

    Recurrent layers are compared with each other at the last time step, where time has not yet done its part.
    """
    if not getattr(tape, "is_chain", True):  # what the layers of a branch multiply says nothing of the whole
        return
    d_norm = getattr(tape, "d_norm", None)
    for i, member in enumerate(getattr(tape, "tapes", ())):
        if hasattr(member, "telemetry") or getattr(member, "is_chain", False):
            yield from _layer_growth(member)
        elif d_norm is not None:
            yield _log_ratio(float(d_norm[i]), float(d_norm[i + 1]))
    if hasattr(tape, "telemetry"):
        rows = [row for _, reverse, row in recurrent_profiles(tape) if not reverse and len(row)]
        yield from (_log_ratio(float(a[-1]), float(b[-1])) for a, b in pairwise(rows))


def _first_nonfinite(tape: Any, name: str = "") -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Where the backward pass of each recurrent member first met a value that is not finite."""
    first = getattr(getattr(tape, "telemetry", None), "first_nonfinite", None)
    if first is not None:
        yield name, first
    for index, member in enumerate(getattr(tape, "tapes", ())):
        yield from _first_nonfinite(member, f"{name}{index}.")
