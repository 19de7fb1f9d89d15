"""How gradients grow and shrink on their way back through time and layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from gradcore.layers.telemetry import log_ratio
from gradcore.training.rules.rule import Symptom, each_step
from gradcore.training.run import Run, Step

__all__: list[str] = []  # for the package only


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
        last = len(walk) - 1
        if not (len(walk) and 0 < walk[last] < math.inf):
            reached = np.flatnonzero((walk > 0) & (walk < np.inf))
            last = int(reached[-1]) if len(reached) else 0
        if last >= 5:
            yield from _growth(run, now, "time", name, total=log_ratio(float(walk[0]), float(walk[last])), n=last)


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
    if not growth:  # nobody has looked
        return
    known = [g for g in growth if not math.isnan(g)]  # behind a gradient of zero there is nothing to compare
    yield from _growth(run, now, "layers", "", total=sum(known) if known else math.nan, n=len(growth))


def _growth(run: Run, now: Step, axis: str, where: str, *, total: float, n: int) -> Iterator[Symptom]:
    """Yield a symptom if the gradient grows or shrinks too much, by exp(total), on its way back over n steps."""
    t, unit = run.thresholds, "time steps" if axis == "time" else "layer" if n == 1 else "layers"
    cases = (
        # While the loss falls, what is left of the gradient is enough.
        ("vanishing", total < log_ratio(t.vanish_ratio, 1.0), total < math.log(1e-7) and run.warm and not run.falls),
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
                advice=_advice(kind, now.keeping_gate(where), now.max_norm is not None, n),
            )


def _advice(kind: str, gate: str | None, clipped: bool, n: int) -> str:
    """Return what is not done yet; nothing where the usual advice fits."""
    if kind == "vanishing_in_time" and gate is not None:
        return (
            f"Raise the bias of the {gate} gate to about {math.log(max(n, 2)):.2g}, which keeps the state over {n} "
            "steps (meanfield.suggest_bias), or use shorter sequences: what happened early hardly changes the weights."
        )
    if kind == "exploding_in_time" and clipped:
        return (
            "The gradient norm is clipped already. Use step_clip inside the backward pass; orthogonal recurrent "
            "matrices or a smaller gain (meanfield.suggest_gain) remove the cause."
        )
    if kind == "exploding_in_layers" and clipped:
        return (
            "The gradient norm is clipped already. Use an initialization that fits the activation, with a smaller gain."
        )
    return ""
