"""What is wrong with the data."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradcore.training.rules.rule import Symptom, each_step
from gradcore.training.run import Run, Step

__all__: list[str] = []  # for the package only


@each_step(  # the others do not look at such a step
    nan_in_data="Remove or fill the missing values, or leave them out of the loss: the weights are not the cause, and "
    "neither are the learning rate and clipping."
)
def nan_in_data(run: Run, now: Step) -> Iterator[Symptom]:
    for name, n, first, shape in now.bad_data:
        entries = "entry that is" if n == 1 else "entries that are"
        yield Symptom(
            "nan_in_data",
            "critical",
            {"array": name, "nonfinite": n, "first": list(first), "shape": list(shape)},
            f"The batch holds {n} {entries} not finite in its {name} of shape {shape}, the first at {first}; "
            f"the loss became {now.loss}.",
            where=name,
            badness=n,
        )


@each_step(
    every="check_outputs_every",
    constant_inputs="Check how the batches are made: all entries of x are the same, so that there is nothing to learn "
    "from them.",
    unscaled_data="Scale inputs and targets to mean 0 and standard deviation 1.",
)
def data(run: Run, now: Step) -> Iterator[Symptom]:
    for name, values in now.data.items():
        size = float(np.sqrt(np.square(values.reshape(-1)[:65536], dtype=np.float64).mean()))
        lasting = run.lasting("unscaled_data", run.thresholds.data_scale < size < math.inf, 2, name)
        if lasting:
            yield Symptom(
                "unscaled_data",
                "moderate",
                {"root_mean_square": size},
                f"The root mean square of the {name} is {size:.3g}.",
                where=name,
                began=lasting[0],
                badness=size,
                times=lasting[1],
            )
    x = now.data.get("x")
    if x is not None:
        same = x.size > 1 and not run.falls and bool((x == x.flat[0]).all())
        lasting = run.lasting("constant_inputs", same and run.warm, 2)
        if lasting:
            yield Symptom(
                "constant_inputs",
                "high",
                {"value": float(x.flat[0]), "entries": x.size},
                f"All {x.size} entries of x are {float(x.flat[0]):.3g}.",
                began=lasting[0],
                times=lasting[1],
            )
