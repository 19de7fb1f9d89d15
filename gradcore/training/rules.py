"""What can go wrong with the gradients of a run: each rule stands beside its advice.

A rule is a generator of the run so far and its newest step. It yields a `Symptom` whenever it sees one. `each_step` and
`at_end` say when it looks, and what to do about every kind of symptom that it yields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from gradcore.layers.telemetry import log_ratio
from gradcore.training.run import Run, Step, deviation, median

__all__ = ["ADVICE"]

# What to do, by kind of finding.
ADVICE: dict[str, str] = {}


class Symptom(NamedTuple):
    """Something that a rule has seen at a step; the monitor keeps one `Finding` for each kind and place."""

    kind: str
    severity: str
    numbers: dict[str, Any]
    message: str
    where: str = ""
    began: int | None = None  # the step, where that is not the newest one
    badness: float = 0.0  # of several, the worst gives the finding its numbers and message
    times: int = 1  # how often it has been seen when it is first reported


# ---- rules -----------------------------------------------------------------------------------------------------------

Look = Callable[[Run, Step], Iterator[Symptom]]


class Rule(NamedTuple):
    """A rule, and the threshold that holds the number of steps between two looks."""

    look: Look
    every: str | None


EACH_STEP: list[Rule] = []  # in the order in which they look
AT_END: list[Rule] = []


def each_step(*, every: str | None = None, **advice: str) -> Callable[[Look], Look]:
    """Let a rule look at every step, or every few; `advice` says what to do about each kind of symptom it yields."""

    def add(look: Look) -> Look:
        ADVICE.update(advice)
        EACH_STEP.append(Rule(look, every))
        return look

    return add


def at_end(**advice: str) -> Callable[[Look], Look]:
    """Let a rule look once, when the run has ended."""

    def add(look: Look) -> Look:
        ADVICE.update(advice)
        AT_END.append(Rule(look, None))
        return look

    return add


@each_step(
    nan_loss="Go back to the last good weights, lower the learning rate, and clip the gradient norm. Look for a "
    "logarithm, division or square root of zero in the loss.",
    inf_loss="Lower the learning rate, clip the gradient norm, and scale inputs and targets to about 1.",
)
def nonfinite_loss(run: Run, now: Step) -> Iterator[Symptom]:
    if math.isfinite(now.loss):
        return
    before = run.losses[-1] if run.losses else math.nan
    yield Symptom(
        "nan_loss" if math.isnan(now.loss) else "inf_loss",
        "critical",
        {"loss": now.loss, "last_finite_loss": before},
        f"The loss became {now.loss}; "
        + (f"the last finite one was {before:.3g}." if run.losses else "none was finite before."),
    )


@each_step(oscillating_loss="Lower the learning rate (by 3 to 10 times). If batches are tiny, make them larger.")
def oscillating_loss(run: Run, now: Step) -> Iterator[Symptom]:
    t, losses = run.thresholds, list(run.losses)
    if not math.isfinite(now.loss) or not run.warm or len(losses) < t.window:
        return
    changes = [b - a for a, b in pairwise(losses)]
    typical_change = median([abs(change) for change in changes])
    typical = median([abs(loss) for loss in losses])
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(changes)) / (len(changes) - 1)
    # A loss that has come down to a tenth jumps among tiny values, which does no harm.
    wild = (
        turns >= 0.5
        and typical_change >= t.oscillation * typical
        and typical_change > 0
        and typical >= 0.1 * abs(run.reference)
    )
    if not run.lasting("oscillating_loss", wild, t.patience):
        return
    ratio = typical_change / typical if typical > 0 else math.inf
    first = next(i for i, change in enumerate(changes, 1) if abs(change) >= t.oscillation * typical)
    yield Symptom(
        "oscillating_loss",
        "high",
        {"typical_change": typical_change, "typical_loss": typical, "turns": turns},
        f"From one step to the next the loss typically changes by {typical_change:.3g}, "
        f"{ratio:.2g} times its own value.",
        began=run.loss_steps[first],
        badness=ratio,
    )


@each_step(
    unstable_after_progress="Clip the gradient norm slightly above its usual value, lower the learning rate, and go "
    "back to weights from before this step."
)
def unstable_after_progress(run: Run, now: Step) -> Iterator[Symptom]:
    kind, t, improved = "unstable_after_progress", run.thresholds, run.best < 0.5 * run.reference
    finite = math.isfinite(now.loss)
    lost_for_long = run.lasting(kind, improved and not finite, t.patience, "not finite")
    if not finite:
        level, rise, lasting, lost = now.loss, math.inf, lost_for_long, True
    elif run.warm:
        # Noise of single batches: the median of ten losses varies by about three times it over a long run.
        logs = [math.log(value) for value in run.losses if value > 0]
        noise = median([abs(b - a) for a, b in pairwise(logs)]) if len(logs) > 1 else 0.0
        level, rise = run.level, run.level / run.best if run.best > 0 else math.nan
        unstable = improved and rise >= max(t.rise, math.exp(min(4 * noise, 700.0)))
        lasting, lost = run.lasting(kind, unstable, 1), level >= run.reference
    else:
        return
    if lasting:
        yield Symptom(
            kind,
            "high" if lost else "moderate",
            {"loss_at_start": run.reference, "best_loss": run.best, "loss": level, "rise": rise},
            f"After falling from {run.reference:.3g} to {run.best:.3g} the loss rose to {level:.3g}.",
            began=lasting[0],
            badness=rise,
            times=lasting[1],
        )


@each_step(
    large_gradients="Clip the gradient norm (1 to 5 is usual for recurrent networks), scale inputs and targets to "
    "about 1, and check the initialization."
)
def large_gradients(run: Run, now: Step) -> Iterator[Symptom]:
    t, norm = run.thresholds, now.norm
    low, high = t.usual_norm
    if not 0 <= norm < math.inf:
        return
    lasting = run.lasting("large_gradients", norm > high, t.patience)
    if not lasting and norm <= t.high_norm:
        return
    began, times = lasting or (now.number, 1)
    yield Symptom(
        "large_gradients",
        "high" if norm > t.high_norm else "moderate",
        {"grad_norm": norm, "usual_range": [low, high]},
        f"The gradient norm reached {norm:.3g}, where {low:g} to {high:g} is usual.",
        began=began,
        badness=norm,
        times=times,
    )


@each_step(
    small_gradients="Do nothing as long as the loss falls. Otherwise raise the learning rate or check the "
    "initialization."
)
def small_gradients(run: Run, now: Step) -> Iterator[Symptom]:
    low, high = run.thresholds.usual_norm
    if not 0 <= now.norm < math.inf:
        return
    lasting = run.lasting("small_gradients", now.norm < low, run.thresholds.patience)
    if lasting:
        yield Symptom(
            "small_gradients",
            "info",
            {"grad_norm": now.norm, "usual_range": [low, high]},
            f"The gradient norm fell to {now.norm:.3g}, where {low:g} to {high:g} is usual.",
            began=lasting[0],
            badness=-now.norm,
            times=lasting[1],
        )


@each_step(gradient_spike="Clip the gradient norm slightly above its usual value.")
def gradient_spike(run: Run, now: Step) -> Iterator[Symptom]:
    t, norm = run.thresholds, now.norm
    before = list(run.norms)[:-1]
    if not 0 < norm < math.inf or len(before) < min(t.warmup, t.window):
        return
    logs = [math.log(value) for value in before]
    center = median(logs)
    z = (math.log(norm) - center) / max(deviation(logs, center), 0.25)
    if z > t.spike_z:
        usual = median(before)
        factor = norm / usual
        yield Symptom(
            "gradient_spike",
            "high" if factor >= 100 else "moderate",
            {"grad_norm": norm, "median_norm": usual, "factor": factor, "z": z},
            f"The gradient norm jumped to {norm:.3g}, {factor:.3g} times the median of the steps before.",
            badness=factor,
        )


@each_step(
    nonfinite_gradient="Clip the gradient norm below the values seen before this step, or use step_clip inside the "
    "backward pass. Keep nonfinite='skip', so that such a step changes no weight."
)
def nonfinite_gradient(run: Run, now: Step) -> Iterator[Symptom]:
    n_nan, n_inf = int(getattr(now.grad_norm, "n_nan", 0)), int(getattr(now.grad_norm, "n_inf", 0))
    if n_nan + n_inf == 0 and math.isfinite(now.norm):
        return
    numbers: dict[str, Any] = {"grad_norm": now.norm, "n_nan": n_nan, "n_inf": n_inf}
    message = f"The gradient norm became {now.norm}"
    if n_nan + n_inf:
        message = f"The gradient holds {n_nan} NaN and {n_inf} infinite entries"
    worst = getattr(now.grad_norm, "worst", None)
    if worst is not None:
        numbers["worst"] = str(worst[0])
        message += f", the first in {worst[0]}"
    for name, (layer, direction, t) in now.seen.first_nonfinite.items():
        numbers["first_nonfinite"] = {"member": name, "layer": layer, "direction": direction, "t": t}
        place = f"{name}.l{layer}" if name else f"l{layer}"
        message += f"; in the backward pass they arose at time step {t} of recurrent layer {place}"
    yield Symptom("nonfinite_gradient", "critical", numbers, message + ".")


@each_step(
    always_clipping="Raise max_norm, or lower the learning rate: the threshold now sets the length of every step."
)
def always_clipping(run: Run, now: Step) -> Iterator[Symptom]:
    window = run.thresholds.window
    share = sum(run.clipped) / window
    if len(run.clipped) < window or share <= run.thresholds.always_clipped:
        return
    norms = list(run.norms)[-window:]
    numbers: dict[str, Any] = {"share": share, "steps": window, "median_norm": median(norms) if norms else math.nan}
    message = f"{share:.0%} of {window} steps in a row were clipped; the median norm was {numbers['median_norm']:.3g}"
    if now.max_norm is not None:
        numbers["max_norm"] = now.max_norm
        message += f" and the threshold {now.max_norm:.3g}"
    yield Symptom(
        "always_clipping",
        "moderate",
        numbers,
        message + ".",
        began=now.number - window + 1 + run.clipped.index(True),
        badness=share,
    )


@each_step(
    skipped_steps="Clip inside the backward pass with step_clip, lower the learning rate, or use float64: skipped "
    "batches teach nothing."
)
def skipped_steps(run: Run, now: Step) -> Iterator[Symptom]:
    n, steps = sum(run.skipped), len(run.skipped)
    if n >= 3 and n / steps >= run.thresholds.skipped:
        yield Symptom(
            "skipped_steps",
            "high",
            {"skipped": n, "steps": steps, "share": n / steps},
            f"{n} of the last {steps} steps were skipped because the gradient was not finite.",
            began=now.number - steps + 1 + run.skipped.index(True),
            badness=n / steps,
        )


@each_step(
    vanishing_in_time="Use an LSTM (forget-gate bias of 1 or more) or a GRU, orthogonal recurrent matrices, or shorter "
    "sequences: what happened early hardly changes the weights.",
    exploding_in_time="Clip the gradient norm, or use step_clip inside the backward pass. Orthogonal recurrent "
    "matrices or a smaller gain remove the cause.",
)
def growth_in_time(run: Run, now: Step) -> Iterator[Symptom]:
    for name, reverse, row in now.seen.profiles:
        # In the order of the forward pass: the backward pass begins at the end.
        walk = row[::-1] if reverse else row
        reached = np.flatnonzero((walk > 0) & (walk < np.inf))
        last = int(reached[-1]) if len(reached) else 0
        if last >= 5:
            yield from _growth(run, "time", name, total=log_ratio(float(walk[0]), float(walk[last])), n=last)


@each_step(
    vanishing_in_layers="Use an initialization that fits the activation (He for relu, Xavier for tanh), relu instead "
    "of sigmoid, residual connections or normalization, or fewer layers.",
    exploding_in_layers="Use an initialization that fits the activation, with a smaller gain; clip the gradient norm.",
)
def growth_in_layers(run: Run, now: Step) -> Iterator[Symptom]:
    growth = now.seen.layer_growth
    per_array = getattr(now.grad_norm, "per_array", None)
    if not now.seen.members and isinstance(per_array, Mapping):
        norms = [float(norm) for name, norm in per_array.items() if "weight" in str(name)]
        growth = [log_ratio(*pair) for pair in pairwise(norms)]
    known = [g for g in growth if not math.isnan(g)]  # behind a gradient of zero there is nothing to compare
    yield from _growth(run, "layers", "", total=sum(known) if known else math.nan, n=len(growth))


def _growth(run: Run, axis: str, where: str, *, total: float, n: int) -> Iterator[Symptom]:
    """Yield a symptom if the gradient grows or shrinks too much, by exp(total), on its way back over n steps."""
    t, unit = run.thresholds, "time steps" if axis == "time" else "layer" if n == 1 else "layers"
    cases = (
        ("vanishing", total < log_ratio(t.vanish_ratio, 1.0), total < math.log(1e-7)),
        ("exploding", total > math.log(t.explode_ratio), total > math.log(1e6)),
    )
    for what, condition, severe in cases:
        kind = f"{what}_in_{axis}"
        lasting = run.lasting(kind, condition, t.patience, where)
        if lasting:
            factor = math.exp(total) if total < 700 else math.inf
            yield Symptom(
                kind,
                "high" if severe else "moderate",
                {"factor": factor, "log_factor": total, "steps": n, "log_growth_per_step": total / n},
                f"On its way back over {n} {unit} the gradient norm is multiplied by {factor:.3g}.",
                where=where,
                began=lasting[0],
                badness=abs(total),
                times=lasting[1],
            )


@at_end()
@each_step(
    every="check_weights_every",
    nonfinite_weights="This model is lost: go back to earlier weights, and train with max_norm and nonfinite='skip'.",
    large_weights="Go back to earlier weights, lower the learning rate, add weight decay, and clip the gradient norm.",
)
def weights(run: Run, now: Step) -> Iterator[Symptom]:
    most, flat = run.thresholds.max_weight, getattr(now.model, "flat_params", None)
    if flat is None or flat.size == 0:
        return
    largest = max(float(flat.max()), -float(flat.min()))
    finite = math.isfinite(largest) and math.isfinite(float(flat.min()))
    if finite and largest <= most:
        return
    where = [
        name
        for name, value in now.model.params.items()
        if value.size and not (np.abs(value) <= (most if finite else np.finfo(value.dtype).max)).all()
    ]
    numbers = {"largest": largest, "parameters": where}
    if finite:
        message = f"Weights of {where[0]} reached {largest:.3g}, above {most:g}."
        yield Symptom("large_weights", "high", numbers, message, badness=largest)
    else:
        yield Symptom("nonfinite_weights", "critical", numbers, f"{where[0]} holds weights that are not finite.")


@each_step(
    every="check_outputs_every",
    nonfinite_outputs="Go back to earlier weights, clip the gradient norm, and lower the learning rate.",
)
def nonfinite_outputs(run: Run, now: Step) -> Iterator[Symptom]:
    if now.outputs and not now.outputs.finite:
        rows = now.outputs.rows
        bad = int(rows.size - np.isfinite(rows).sum())
        numbers = {"nonfinite": bad, "outputs": rows.size}
        message = f"{bad} of {rows.size} outputs are not finite."
        yield Symptom("nonfinite_outputs", "high", numbers, message, badness=bad)


@each_step(
    every="check_outputs_every",
    constant_outputs="Check that the inputs reach the model and differ, lower the learning rate, and choose another "
    "initialization or activation (units that are dead or saturated let nothing through).",
)
def constant_outputs(run: Run, now: Step) -> Iterator[Symptom]:
    if not now.outputs or not now.outputs.finite:
        return
    rows, spread, largest, _ = now.outputs
    # Values that differ by a few roundings of float32 are the same.
    lasting = run.lasting("constant_outputs", len(rows) > 1 and spread <= 1e-6 * largest, 2)
    if lasting:
        yield Symptom(
            "constant_outputs",
            "high",
            {"spread": spread, "largest": largest, "samples": len(rows)},
            f"All {len(rows)} outputs of a batch are the same.",
            began=lasting[0],
            times=lasting[1],
        )


@each_step(
    every="check_outputs_every",
    frozen_outputs="Check that the optimizer holds this model's parameters, that its steps are not all skipped, and "
    "that the learning rate is not far too small.",
)
def frozen_outputs(run: Run, now: Step) -> Iterator[Symptom]:
    if not now.outputs or not now.outputs.finite:
        return
    every, sample = run.thresholds.check_outputs_every, now.outputs.rows.ravel()[:1024].astype(np.float64)
    before, run.outputs = run.outputs, sample
    same = False
    if before is not None and before.shape == sample.shape:
        same = float(np.abs(sample - before).max()) <= 1e-7 * now.outputs.largest
    # Outputs may come to rest because the run has converged.
    learned = len(run.losses) > 0 and run.losses[-1] < 0.5 * run.reference
    lasting = run.lasting("frozen_outputs", same and not learned, 2)
    if lasting:
        yield Symptom(
            "frozen_outputs",
            "high",
            {"checks": lasting[1], "grad_norm": now.norm},
            f"The outputs did not move over {lasting[1] * every} steps.",
            began=max(lasting[0] - every, 0),
            badness=lasting[1],
            times=lasting[1],
        )


@at_end(never_clipping="Lower max_norm towards the largest norms seen, or leave out clipping.")
def never_clipping(run: Run, now: Step) -> Iterator[Symptom]:
    n = run.n_thresholded
    if n >= run.thresholds.never_clipped_steps and run.n_clipped == 0:
        yield Symptom(
            "never_clipping",
            "info",
            {"steps": n, "largest_norm": run.largest_norm},
            f"None of {n} steps was clipped; the largest norm was {run.largest_norm:.3g}.",
        )
