"""Whether clipping and skipping are of use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gradcore.training.rules.rule import Symptom, at_end, each_step
from gradcore.training.run import Run, Step, median

__all__: list[str] = []  # for the package only


@each_step(
    always_clipping="Raise max_norm, or lower the learning rate: the threshold now sets the length of every step."
)
def always_clipping(run: Run, now: Step) -> Iterator[Symptom]:
    window = run.thresholds.window
    share = sum(run.clipped) / window
    if len(run.clipped) < window or share <= run.thresholds.always_clipped or not run.clipped[-1]:
        return
    norms = list(run.norms)[-window:]
    numbers: dict[str, Any] = {"share": share, "steps": window, "median_norm": median(norms) if norms else math.nan}
    message = f"{share:.0%} of {window} steps in a row were clipped; the median norm was {numbers['median_norm']:.3g}"
    if now.max_norm is not None:
        numbers["max_norm"] = now.max_norm
        message += f" and the threshold {now.max_norm:.3g}"
    yield Symptom(
        "always_clipping",
        "info" if now.adaptive else "moderate",
        numbers,
        message + ".",
        began=now.number - window + 1 + run.clipped.index(True),
        badness=share,
        times=sum(run.clipped),
        advice=f"Nothing, as long as the loss falls: {now.optimizer} divides by the size of the gradient, so that "
        "clipping only evens out the steps."
        if now.adaptive
        else "",
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


@each_step(
    skipped_steps="Clip inside the backward pass with step_clip, lower the learning rate, or use float64: skipped "
    "batches teach nothing."
)
def skipped_steps(run: Run, now: Step) -> Iterator[Symptom]:
    n, steps = sum(run.skipped), len(run.skipped)
    if run.skipped and run.skipped[-1] and n >= 3 and n / steps >= run.thresholds.skipped:
        yield Symptom(
            "skipped_steps",
            "high",
            {"skipped": n, "steps": steps, "share": n / steps},
            f"{n} of the last {steps} steps were skipped because the gradient was not finite.",
            began=now.number - steps + 1 + run.skipped.index(True),
            badness=n / steps,
            times=n,
        )
