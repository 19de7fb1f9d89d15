"""What is wrong with the outputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradcore.training.rules.rule import Symptom, each_step
from gradcore.training.run import Run, Step

__all__: list[str] = []  # for the package only


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
