"""What is wrong with the course of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from gradcore.training.rules.rule import Symptom, each_step
from gradcore.training.run import Run, Step, median

__all__: list[str] = []  # for the package only


# What is left to do where the gradient is clipped already: for a loss that is infinite, and for one that is NaN.
_CLIPPED = (
    "Lower the learning rate, and scale inputs and targets to about 1.",
    "Go back to the last good weights, and lower the learning rate. Look for a logarithm, division or square root of "
    "zero in the loss.",
)


@each_step(
    nan_loss="Go back to the last good weights, lower the learning rate, and clip the gradient norm. Look for a "
    "logarithm, division or square root of zero in the loss.",
    inf_loss="Lower the learning rate, clip the gradient norm, and scale inputs and targets to about 1.",
)
def nonfinite_loss(run: Run, now: Step) -> Iterator[Symptom]:
    if not now.lost:
        return
    before, nan = run.losses[-1] if run.losses else math.nan, math.isnan(now.loss)
    yield Symptom(
        "nan_loss" if nan else "inf_loss",
        "critical",
        {"loss": now.loss, "last_finite_loss": before},
        f"The loss became {now.loss}; "
        + (f"the last finite one was {before:.3g}." if run.losses else "none was finite before."),
        advice=_CLIPPED[nan] if now.max_norm is not None else "",
    )


@each_step(
    diverged="Lower the learning rate (by 10 times or more) and clip the gradient norm; go back to weights from before "
    "this step, or start again."
)
def diverged(run: Run, now: Step) -> Iterator[Symptom]:
    if not now.has_loss:
        return
    t = run.thresholds
    # Early on, the loss has only its first value to be compared with, and that is not small by chance if all others are
    # far above it.
    start = run.first if run.lowest > 100 * run.first else run.reference
    level = run.level if run.warm and math.isfinite(now.loss) else now.loss
    condition = start > 0 and level > t.diverged * start
    if not math.isfinite(level):  # by a logarithm of zero, or because it had been on its way there
        flat = getattr(now.model, "flat_params", np.zeros(1))
        strayed = flat.size and not float(np.abs(flat).max()) <= t.max_weight
        condition = bool(strayed or (run.losses and start > 0 and run.losses[-1] > 10 * start))
    lasting = run.lasting("diverged", condition, t.patience)
    if lasting:
        yield Symptom(
            "diverged",
            "critical",
            {"loss_at_start": start, "loss": level, "lr": now.record.lr if now.record else math.nan},
            f"The loss diverged: it began at {start:.3g} and is {level:.3g}.",
            began=min(lasting[0], _since(run, t.diverged * start)) if run.losses else lasting[0],
            badness=math.inf if not math.isfinite(level) else level,
            times=lasting[1],
            advice="Lower the learning rate (by 10 times or more): the gradient norm is clipped already. Go back to "
            "weights from before this step, or start again."
            if now.max_norm is not None
            else "",
        )


def _since(run: Run, limit: float) -> int:
    """Return the step since which all finite losses have been above a limit, which their median is later."""
    since = run.loss_steps[-1] + 1
    for step, loss in zip(reversed(run.loss_steps), reversed(run.losses), strict=True):
        if not loss > limit:
            break
        since = step
    return since


@each_step(
    rising_loss="Check the sign of the loss and of dL/dy, and that the gradients are set to zero before each backward "
    "pass; lower the learning rate."
)
def rising_loss(run: Run, now: Step) -> Iterator[Symptom]:
    t, start = run.thresholds, min(run.reference, run.best)
    if not run.warm or run.signed or not math.isfinite(now.loss):
        return
    rises = start > 0 and run.best >= 0.5 * run.reference and run.level >= start * max(t.rise, _by_chance(run))
    lasting = run.lasting("rising_loss", rises, t.patience)
    if lasting:
        yield Symptom(
            "rising_loss",
            "high",
            {"loss_at_start": run.reference, "best_loss": run.best, "loss": run.level, "rise": run.level / start},
            f"The loss rose from {run.reference:.3g} to {run.level:.3g}, without having fallen before.",
            began=lasting[0],
            badness=run.level / start,
            times=lasting[1],
        )


@each_step(
    unstable_after_progress="Clip the gradient norm slightly above its usual value, lower the learning rate, and go "
    "back to weights from before this step, as a gradcore.Supervisor does by itself."
)
def unstable_after_progress(run: Run, now: Step) -> Iterator[Symptom]:
    kind, t, level, best = "unstable_after_progress", run.thresholds, run.level, run.best
    if not run.warm or not math.isfinite(now.loss):
        return
    if run.signed:
        # Ratios say nothing: the loss has to lose half of what it had gained, and noise must explain neither.
        gained, lost = run.reference - best, level - best
        unstable = min(gained, lost) > 4 * run.noise and lost >= gained / 2
    else:
        unstable = best < 0.5 * run.reference and level >= 0.01 * run.reference and level >= best * t.rise
        unstable = unstable and level >= best * _by_chance(run)
    if unstable:
        yield Symptom(
            kind,
            "high" if level >= run.reference else "moderate",
            {
                "loss_at_start": run.reference,
                "best_loss": best,
                "loss": level,
                "rise": level / best if best > 0 else math.nan,
            },
            f"After falling from {run.reference:.3g} to {best:.3g} the loss rose to {level:.3g}.",
            badness=level - best,
            advice="Lower the learning rate, and go back to weights from before this step."
            if now.max_norm is not None
            else "",
        )


def _by_chance(run: Run) -> float:
    """Return the factor by which the median of ten losses may rise because single batches differ."""
    return math.exp(min(4 * run.log_noise, 700.0))


@each_step(oscillating_loss="Lower the learning rate (by 3 to 10 times). If batches are tiny, make them larger.")
def oscillating_loss(run: Run, now: Step) -> Iterator[Symptom]:
    t = run.thresholds
    if not math.isfinite(now.loss) or not run.warm or run.signed or len(run.losses) < t.window:
        return
    losses = list(run.losses)
    least = min(losses)
    if max(losses) - least < t.oscillation * least:  # no change is as large as the typical loss
        run.wild = False
        run.lasting("oscillating_loss", False, t.patience)
        return
    changes = [b - a for a, b in pairwise(losses)]
    sizes = [abs(change) for change in changes]
    typical_change, typical = median(sizes), median(losses)
    # A loss that has come down to a tenth jumps among tiny values, which does no harm.
    run.wild = typical_change >= t.oscillation * typical and typical_change > 0 and typical >= 0.1 * run.reference
    lasting = run.lasting("oscillating_loss", run.wild and _moved_by_steps(run, losses, changes), t.patience)
    if not lasting:
        return
    ratio = typical_change / typical if typical > 0 else math.inf
    first = next(i for i, size in enumerate(sizes, 1) if size >= t.oscillation * typical)
    yield Symptom(
        "oscillating_loss",
        "high",
        {"typical_change": typical_change, "typical_loss": typical},
        f"From one step to the next the loss typically changes by {typical_change:.3g}, "
        f"{ratio:.2g} times its own value.",
        began=run.loss_steps[first],
        badness=ratio,
    )


def _moved_by_steps(run: Run, losses: list[float], changes: list[float]) -> bool:
    """Whether the loss would jump less if the weights stood still; batches alone may differ as much."""
    if run.trials:
        return len(run.trials) >= 5 and sum(after > before for before, after in run.trials) > 0.5 * len(run.trials)
    # Without trials: it goes up and down in turns, while batches come in any order.
    center = median(losses)
    sides = [(loss > center) - (loss < center) for loss in losses]
    return -sum(a * b for a, b in pairwise(sides)) >= 0.6 * len(changes)
