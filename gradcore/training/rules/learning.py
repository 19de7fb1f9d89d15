"""Whether the steps lower the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradcore.training.rules.rule import Symptom, each_step
from gradcore.training.run import Run, Step, median

__all__: list[str] = []  # for the package only


@each_step(
    every="check_outputs_every",
    steps_raise_loss="Lower the learning rate (by 3 to 10 times). If that does not help, check the sign of the loss "
    "and of dL/dy, and that the gradients are set to zero before each backward pass.",
)
def steps_raise_loss(run: Run, now: Step) -> Iterator[Symptom]:
    if (
        run.signed
        or (run.learned and not run.wild)
        or not math.isfinite(now.loss)
        or getattr(now.grad_norm, "skipped", False)
    ):
        return
    after = now.loss_after()
    if math.isnan(after):
        return
    run.trials.append((now.loss, after))
    n, raised = len(run.trials), sum(after > before for before, after in run.trials)
    changes = [(after - before) / abs(before) if before else 0.0 for before, after in run.trials]
    typical, share = median(changes), run.thresholds.raised
    # Steps follow the mean of several gradients, so that one of their own batches may rise by a little.
    if n >= 5 and ((raised >= 0.6 * n and typical > 0.05) or (n == 10 and raised >= share * n and typical > 1e-6)):
        yield Symptom(
            "steps_raise_loss",
            "high",
            {"raised": raised, "looks": n, "typical_change": typical},
            f"{raised} of {n} steps raised the loss of the very batch they were computed from, "
            f"typically by {typical:.2g} times its value.",
            badness=raised / n,
            times=raised,
        )


@each_step(
    every="check_outputs_every",
    not_learning="Check that targets belong to their inputs and that the inputs tell something of them; try learning "
    "rates 10 times larger and smaller.",
)
def not_learning(run: Run, now: Step) -> Iterator[Symptom]:
    t = run.thresholds
    if run.n_losses < t.learning_steps // 2 or run.signed or not math.isfinite(now.loss):
        return
    others = now.loss_of_others()
    if math.isfinite(others):
        run.swaps.append((now.loss, others))
    if run.n_losses < t.learning_steps:
        return
    level, need = median(run.losses), t.progress
    flat = level > (1 - need) * run.reference and run.best > 0.5 * run.reference
    own = sum(pair[0] for pair in run.swaps)
    gain = sum(pair[1] for pair in run.swaps) - own
    # Outputs that do as well for another sample know nothing of their own.
    blind = len(run.swaps) == 10 and gain < need * own and level > 0.5 * run.reference
    lasting = run.lasting("not_learning", flat or blind, 2)
    if lasting:
        what = (
            f"After {run.n_losses} steps the loss is {level:.3g}, at the start it was {run.reference:.3g}"
            if flat
            else f"The loss fell from {run.reference:.3g} to {level:.3g}"
        )
        if blind:
            what += "; each sample does as well with the output of another one"
        yield Symptom(
            "not_learning",
            "moderate",
            {"loss_at_start": run.reference, "loss": level, "steps": run.n_losses},
            what + ".",
            began=lasting[0],
            badness=run.n_losses,
            times=lasting[1],
        )
