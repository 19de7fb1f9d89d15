"""What is wrong with the gradient norm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradcore.training.rules.rule import Symptom, each_step
from gradcore.training.run import Run, Step, deviation, median

__all__: list[str] = []  # for the package only


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
    clipped = now.max_norm is not None
    yield Symptom(
        "large_gradients",
        # Neither a clipped gradient nor one that the optimizer divides by its size makes a step longer.
        "high" if norm > t.high_norm and not (clipped or now.adaptive) else "moderate",
        {"grad_norm": norm, "usual_range": [low, high]},
        f"The gradient norm reached {norm:.3g}, where {low:g} to {high:g} is usual.",
        began=began,
        badness=norm,
        times=times,
        advice="Scale inputs and targets to about 1 and check the initialization; the gradient is clipped already."
        if clipped
        else "",
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
    if not t.usual_norm[0] < norm < math.inf or len(run.logs) <= min(t.warmup, t.window):
        return
    if run.logs[-1] - min(run.logs) <= t.spike_z * 0.25:  # the median is no less than the minimum
        return
    logs, before = list(run.logs)[:-1], list(run.norms)[:-1]
    center = median(logs)
    z = (math.log(norm) - center) / max(deviation(logs, center), 0.25)
    if z > t.spike_z:
        usual = median(before)
        factor, clipped = norm / usual, now.max_norm is not None
        yield Symptom(
            "gradient_spike",
            "high" if factor >= 100 and not clipped else "moderate",
            {"grad_norm": norm, "median_norm": usual, "factor": factor, "z": z},
            f"The gradient norm jumped to {norm:.3g}, {factor:.3g} times the median of the steps before.",
            badness=factor,
            advice="Nothing, if it is rare: the step was clipped." if clipped else "",
        )


@each_step(
    nonfinite_gradient="Clip the gradient norm below the values seen before this step, or use step_clip inside the "
    "backward pass. Keep nonfinite='skip', so that such a step changes no weight."
)
def nonfinite_gradient(run: Run, now: Step) -> Iterator[Symptom]:
    n_nan, n_inf = int(getattr(now.grad_norm, "n_nan", 0)), int(getattr(now.grad_norm, "n_inf", 0))
    if n_nan + n_inf == 0 and math.isfinite(now.norm):
        return
    if now.scale > 1 and not now.lost:  # it overflowed because of the scale, which is now smaller
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
    accumulated_gradients="Set the gradients to zero before each backward pass (model.zero_grad()), unless several "
    "batches are meant to add up; then divide by their number."
)
def accumulated_gradients(run: Run, now: Step) -> Iterator[Symptom]:
    t = run.thresholds
    after_look = run.n_steps % t.check_weights_every
    if after_look > 1 or not now.norm < math.inf:
        return
    flat = getattr(now.model, "flat_grads", None)
    if flat is None or flat.size == 0:
        return
    grads = flat[:: -(-flat.size // 4096)].astype(np.float64)
    before, run.grads = run.grads, grads
    if after_look != 1 or before is None or before.shape != grads.shape:
        return
    size, change = float(np.linalg.norm(grads)), float(np.linalg.norm(grads - before))
    # A gradient that hardly changes with the batch is usual, but then it does not grow while the loss falls.
    grown = run.warm and run.level < run.reference and now.norm > 3 * run.first_norm
    lasting = run.lasting("accumulated_gradients", grown and change < 0.5 * size, 3)
    if lasting:
        yield Symptom(
            "accumulated_gradients",
            "moderate",
            {"change": change / size, "grad_norm": now.norm, "grad_norm_at_start": run.first_norm},
            f"The gradient has grown from a norm of {run.first_norm:.3g} to {now.norm:.3g}, and each step adds only "
            f"{change / size:.2g} of it.",
            began=lasting[0],
            badness=now.norm,
            times=lasting[1],
        )
