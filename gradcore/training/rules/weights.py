"""What is wrong with the weights and the units."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.recurrent_tape import RecurrentTape
from gradcore.layers.tape import Member
from gradcore.training.rules.rule import Symptom, at_end, each_step
from gradcore.training.run import Run, Step

__all__: list[str] = []  # for the package only

CLIPPED_ALREADY = (
    "Go back to earlier weights, lower the learning rate, and add weight decay: the gradient norm is clipped already."
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
        advice = "" if now.max_norm is None else CLIPPED_ALREADY
        yield Symptom("large_weights", "high", numbers, message, badness=largest, advice=advice)
    else:
        yield Symptom("nonfinite_weights", "critical", numbers, f"{where[0]} holds weights that are not finite.")


@each_step(
    every="check_weights_every",
    frozen_weights="Check that the optimizer holds this model's own parameters (not those of a copy), that its "
    "learning rate is not 0, and that the gradient reaches them.",
    tiny_steps="Raise the learning rate, by 10 times or more.",
    huge_steps="Lower the learning rate, by 10 times or more, and start again.",
)
def moves(run: Run, now: Step) -> Iterator[Symptom]:
    flat = getattr(now.model, "flat_params", None)
    if flat is None or flat.size == 0:
        return
    weights = flat[:: -(-flat.size // 4096)].copy()
    before, run.weights = run.weights, weights
    skipped, run.weights_skipped = run.n_skipped - run.weights_skipped, run.n_skipped
    steps, run.weights_step = now.number - run.weights_step, now.number
    if before is None or before.shape != weights.shape:
        run.start = weights
        return
    equal = skipped == 0 and np.array_equal(before, weights) and not _at_rest(run, now)
    lasting = run.lasting("frozen_weights", equal, 2)
    if lasting:
        yield Symptom(
            "frozen_weights",
            "high",
            {"grad_norm": now.norm, "checks": lasting[1], "lr": now.record.lr if now.record else math.nan},
            f"The weights did not change over {lasting[1] * steps} steps"
            + (", the gradient is exactly 0." if now.norm == 0 else "."),
            began=max(lasting[0] - steps, 0),
            badness=lasting[1],
            times=lasting[1],
        )
    if run.start is None or run.n_losses < run.thresholds.learning_steps or equal or run.signed:
        return
    size = float(np.linalg.norm(run.start.astype(np.float64)))
    if run.level > 0.5 * run.reference and 0 < size < math.inf:
        change, t = float(np.linalg.norm(weights.astype(np.float64) - run.start)) / size, run.thresholds
        if change < t.small_change or (change > t.large_change and not run.falls):
            yield Symptom(
                "tiny_steps" if change < t.small_change else "huge_steps",
                "moderate",
                {"change": change, "steps": run.n_steps},
                f"In {run.n_steps} steps the weights changed by {change:.2g} times their size; the loss did not halve.",
                badness=run.n_steps,
            )


def _at_rest(run: Run, now: Step) -> bool:
    """Whether there is nothing left to learn: a loss of 0, no gradient at the output, or a loss that has come down."""
    if now.loss == 0 or (run.warm and run.level < 0.5 * run.reference and not run.signed):
        return True
    dy = None if now.record is None else now.record.dy
    return isinstance(dy, np.ndarray) and not dy.any()


@each_step(
    every="check_outputs_every",
    dead_units="Use LeakyReLU, ELU or GELU, a smaller learning rate, or start again: units that are 0 for every input "
    "get no gradient and stay so.",
)
def dead_units(run: Run, now: Step) -> Iterator[Symptom]:
    for member in now.seen.members:
        for place, outputs in _rectified(member):
            units = outputs.shape[-1]
            n = int((outputs.max(axis=0) <= 0).sum())
            lasting = run.lasting("dead_units", n >= run.thresholds.dead * units, 3, place)
            if lasting:
                yield Symptom(
                    "dead_units",
                    "high" if n == units else "info" if run.falls else "moderate",
                    {"dead": n, "units": units},
                    f"{n} of {units} units are 0 for a whole batch.",
                    where=place,
                    began=lasting[0],
                    badness=n,
                    times=lasting[1],
                )


def _rectified(member: Member) -> Iterator[tuple[str, Array]]:
    """The place and the outputs, (rows, units), of a ReLU, and of each layer and direction of an RNN with ReLU."""
    tape = member.tape
    if type(tape.layer).__name__ == "ReLU" and tape.kept and tape.kept[0].ndim >= 2 and tape.kept[0].size:
        yield member.name, tape.kept[0].reshape(-1, tape.kept[0].shape[-1])
    elif isinstance(tape, RecurrentTape) and getattr(tape.layer, "nonlinearity", None) == "relu":
        for profile, rows in zip(member.profiles(), tape.trace.arrays, strict=False):
            if len(rows.gates):
                yield profile.name, rows.gates[:, : tape.layer.hidden_size]
