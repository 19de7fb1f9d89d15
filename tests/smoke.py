"""Each cell forward and backward against the NumPy twin: for processors that an emulator plays, where more takes long.

`python tests/smoke.py v3` also fails unless v3 is the instruction set that was chosen.
"""

from __future__ import annotations

import sys

import numpy as np
from tools import as_state, parts, random_state, recurrent_params, relative_error

import gradcore
from gradcore import reference

I, H, B, T, LENGTHS = 3, 21, 5, 7, [7, 2, 0, 5, 7]
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


def largest_error(mode: str, dtype: str) -> float:
    """Of everything that the layer of this kind gives: two layers, both directions, a ragged batch."""
    params = recurrent_params(mode, I, H, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, 2 * H))
    state, dstate = (random_state(mode, 4, B, H, seed) for seed in (2, 3))
    want_y, want_state, want_tape = reference.recurrent_forward(mode, params, x, state, LENGTHS)
    want = reference.recurrent_backward(want_tape, dy, dstate)

    def cast(values: object) -> object:
        return as_state(mode, (a.astype(dtype) for a in parts(values)))

    kind, _, nonlinearity = mode.partition("_")
    options = {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    layer = getattr(gradcore, kind)(I, H, 2, bidirectional=True, dtype=dtype, **options)
    layer.load_state_dict({name: p.astype(dtype) for name, p in params.items()})
    y, tape = layer.forward(x.astype(dtype), cast(state), LENGTHS)
    dx = layer.backward(tape, dy.astype(dtype), cast(dstate))
    pairs = [(y, want_y), (dx, want.dx), *((layer.grads[name], grad) for name, grad in want.grads.items())]
    pairs += zip(parts(tape.state) + parts(tape.dstate), parts(want_state) + parts(want.dstate), strict=True)
    squares = sum(float(np.sum(grad**2)) for grad in want.grads.values())
    pairs.append((float(gradcore.grad_norm(layer)), np.sqrt(squares)))
    return max(relative_error(got, expected) for got, expected in pairs)


def main() -> None:
    isa, wanted = gradcore.info()["isa"], sys.argv[1:] or [gradcore.info()["isa"]]
    errors = {
        f"{mode} {dtype}": (largest_error(mode, dtype), TOLERANCE[dtype])
        for mode in ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")
        for dtype in TOLERANCE
    }
    print(f"{isa}:", ", ".join(f"{name} {error:.0e}" for name, (error, _) in errors.items()))
    wrong = [name for name, (error, tolerance) in errors.items() if not error <= tolerance]
    if wrong or [isa] != wanted:
        sys.exit(f"wrong: {', '.join(wrong) or f'{isa} was chosen, not {wanted[0]}'}")


if __name__ == "__main__":
    main()
