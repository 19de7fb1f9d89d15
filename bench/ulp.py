"""The worst error of tanh and sigmoid, in units in the last place (ULP), and what else their users rely on.

Run with ``python bench/ulp.py``; ``GRADCORE_ISA`` chooses the instruction set. float32: all 2^32 inputs, against
float64; float64: 10^8 inputs of every size, dense where the functions bend and beside the joins of their formulas,
against ``np.longdouble``. Besides: zeros, infinities, NaN, bounds, odd symmetry, no decrease across a join, and the
derivatives as the backward pass computes them from the stored value, beside PyTorch's formulas for them. One line for
each function and type; the exit status is 1 if an error exceeds 2 ULP or anything else is wrong. ``--quick`` takes a
sample of all that.

A result below the smallest normal number may be 0 instead, for the kernels flush such numbers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gradcore

Array = np.ndarray[Any, Any]

LAYERS = {"tanh": gradcore.Tanh, "sigmoid": gradcore.Sigmoid}
WIDE: dict[Any, Any] = {np.float32: np.float64, np.float64: np.longdouble}
BITS: dict[Any, Any] = {np.float32: np.uint32, np.float64: np.uint64}
BOUND = 2.0
CHUNK = 1 << 20


def truth(name: str, x: Array) -> Array:
    """The function in the type of x, a wider one than that of the kernels. Cheaper where nearly all float32 lie."""
    size = np.abs(x)
    if name == "tanh":
        small = x.dtype == np.float64 and size.max() < 2**-13
        value: Array = x - x * x * x / 3 if small else np.tanh(x)
    elif x.dtype == np.float64 and size.max() < 2**-26:
        value = 0.5 + 0.25 * x
    else:
        e = np.exp(-size)
        value = np.where(x < 0, e, 1) / (1 + e)
    return value


def ulps(y: Array, want: Array) -> Array:
    """|y - want| in units of the last place that y's type has at `want`, which is of a wider type."""
    kind = np.finfo(y.dtype)
    least = int(kind.minexp)
    if want.dtype == np.float64:  # its exponent without its digits is a power of two, much faster than frexp
        power = np.maximum((want.view(np.uint64) & np.uint64(0x7FF << 52)).view(np.float64), 2.0**least)
        error = np.abs(y - want) / (power * 2.0**-kind.nmant)
    else:
        exponent = np.maximum(np.frexp(want)[1] - 1, least)
        error = np.abs(y - want) / np.ldexp(np.longdouble(1), exponent - kind.nmant)
    return np.where((y == 0) & (np.abs(want) < kind.tiny), 0, error)


def joins(name: str, dtype: Any) -> Array:
    """The |x| at which the function goes over to another power of two, to about one unit in the last place."""
    limit = {"tanh": 10 if dtype == np.float32 else 20, "sigmoid": 89 if dtype == np.float32 else 710}[name]
    n = np.arange(int(limit / math.log(2)) + 1)
    at = float(dtype(0.20275)) + (n + 0.5) * math.log(2) if name == "tanh" else (n + 1.5) * math.log(2)
    return at[at < limit].astype(dtype)


def beside(at: Array, steps: int) -> Array:
    """Each value with the `steps` numbers below and above it, a row each; both signs, ascending."""
    kind = BITS[at.dtype.type]
    rows = (at.view(kind)[:, None] + np.arange(-steps, steps + 1).astype(kind)).view(at.dtype)
    return np.concatenate([-rows[:, ::-1], rows])


@dataclass
class Worst:
    """The largest error so far, and the complaints."""

    error: float = 0
    at: float = 0
    inputs: int = 0
    wrong: list[str] = field(default_factory=list)

    def look(self, name: str, layer: Any, x: Array) -> Array:
        """Judge the values at x and return them."""
        y: Array = layer(x)
        error = ulps(y, truth(name, x.astype(WIDE[x.dtype.type])))
        i = int(error.argmax())  # the first NaN, if there is one
        self.inputs += x.size
        if not error[i] <= self.error:
            self.error, self.at = float(error[i]), float(x[i])
        low, high = (-1, 1) if name == "tanh" else (0, 1)
        self.expect(bool(y.min() >= low and y.max() <= high), f"beyond {low}..{high} near {x[0]}")
        return y

    def expect(self, fact: bool, complaint: str) -> None:
        if not fact:
            self.wrong.append(complaint)


def every_float32(quick: bool) -> Iterator[Array]:
    """All that are not negative and no NaN, in chunks; for a quick look a 64th of them."""
    infinity = 0x7F800000
    step = 64 if quick else 1
    for first in range(0, infinity + 1, CHUNK * step):
        yield np.arange(first, min(first + CHUNK * step, infinity + 1), step, dtype=np.uint32).view(np.float32)


def every_nan() -> Iterator[Array]:
    """All NaNs of float32."""
    for sign in (0, 1 << 31):
        for first in range(0x7F800001 + sign, (1 << 31) + sign, CHUNK):
            yield np.arange(first, min(first + CHUNK, (1 << 31) + sign), dtype=np.uint32).view(np.float32)


def stratified(name: str, dtype: Any, count: int) -> Iterator[Array]:
    """Inputs of every binade, of the ordinary ones more, of the range in which the functions bend, and near joins."""
    rng = np.random.default_rng(0)
    bits = BITS[dtype]
    infinity = int(np.array(np.inf, dtype).view(bits))
    ends = np.array([2.0**-30, 2.0**10], dtype).view(bits)
    while count > 0:
        n = min(count, CHUNK) // 5 + 1
        near = rng.choice(joins(name, dtype), n).view(bits) + rng.integers(-1000, 1000, n).astype(bits)
        x = np.concatenate(
            [
                rng.integers(0, infinity, n, dtype=bits).view(dtype),
                rng.integers(ends[0], ends[1], n, dtype=bits).view(dtype),
                rng.uniform(0, 1.5, n).astype(dtype),
                rng.uniform(0, 20 if name == "tanh" or rng.integers(2) else 745, n).astype(dtype),
                near.view(dtype),
            ]
        )
        yield np.where(rng.integers(0, 2, x.size) == 1, -x, x)
        count -= x.size


def check_ends(name: str, layer: Any, worst: Worst) -> None:
    """Exact at zeros and infinities, NaN stays NaN, in the body of a vector and in its tail."""
    x = np.array([0, -0.0, np.inf, -np.inf] * 9, layer.dtype)
    want = np.array([0, -0.0, 1, -1] * 9 if name == "tanh" else [0.5, 0.5, 1, 0] * 9, layer.dtype)
    y = layer(x)
    exact = (y == want) & (np.signbit(y) == np.signbit(want))
    worst.expect(bool(exact.all()), f"not exact at {x[~exact]}")
    bits = BITS[layer.dtype.type]
    infinity = int(np.array(np.inf, layer.dtype).view(bits))
    payloads = infinity + 2 ** np.arange(np.finfo(layer.dtype).nmant, dtype=bits)
    nan = np.concatenate([payloads, payloads + 1]).view(layer.dtype)
    worst.expect(bool(np.isnan(layer(np.concatenate([nan, -nan]))).all()), "a NaN became a number")


def check_joins(name: str, layer: Any, worst: Worst) -> None:
    """No decrease from one number to the next across a join."""
    x = beside(joins(name, layer.dtype.type), 3)
    falls = np.diff(layer(x), axis=1) < 0
    worst.expect(not falls.any(), f"decreases beside {[float(v) for v in x[falls.any(axis=1), 3]]}")


def derivative_losses(name: str, layer: Any, x: Array) -> tuple[float, float]:
    """The worst ULP of the derivative as computed from the stored value: by the backward pass, by PyTorch's formula."""
    y, tape = layer.forward(x)
    exact = y.astype(WIDE[x.dtype.type])
    want = (1 - exact) * (1 + exact) if name == "tanh" else exact * (1 - exact)
    theirs = 1 - y * y if name == "tanh" else (1 - y) * y
    ours = layer.backward(tape, np.ones_like(y))
    some = want > 0
    return float(ulps(ours[some], want[some]).max()), float(ulps(theirs[some], want[some]).max())


def check_derivative(name: str, layer: Any, worst: Worst) -> str:
    """Towards saturation, where 1 - h^2 cancels."""
    end = 10 if layer.dtype == np.float32 else 20
    x = np.linspace(0.5, end if name == "tanh" else 2 * end, 1_000_001).astype(layer.dtype)
    ours, theirs = np.max([derivative_losses(name, layer, part) for part in (x, -x)], axis=0)
    worst.expect(bool(ours <= theirs), "the derivative loses more than PyTorch's formula")
    return f"derivative {ours:.3g} ULP (PyTorch's formula {theirs:.3g})"


def measure(name: str, dtype: Any, quick: bool) -> bool:
    """One line; whether all is well."""
    layer, worst, falls = LAYERS[name](dtype=dtype), Worst(), 0
    if dtype == np.float32:
        for x in every_float32(quick):
            y, mirrored = worst.look(name, layer, x), layer(-x)
            falls += int((np.diff(y) < 0).sum())
            if name == "tanh":
                worst.expect(bool((y == -mirrored).all()), f"not odd near {x[0]}")
            else:
                falls += int((np.diff(worst.look(name, layer, -x)) > 0).sum())
        for x in every_nan():
            worst.expect(bool(np.isnan(layer(x)).all()), "a NaN became a number")
    else:
        for x in stratified(name, dtype, 10**6 if quick else 10**8):
            y = worst.look(name, layer, x)
            worst.expect(name != "tanh" or bool((y == -layer(-x)).all()), f"not odd near {x[0]}")
    check_ends(name, layer, worst)
    check_joins(name, layer, worst)
    notes = [check_derivative(name, layer, worst)]
    if dtype == np.float32:
        notes.append(f"{falls:,} decreases from one input to the next")
    worst.expect(worst.error <= BOUND, f"more than {BOUND} ULP")
    print(
        f"{name} {np.dtype(dtype).name} {gradcore.info()['isa']}: {worst.error:.4f} ULP at {worst.at!r}"
        f" of {worst.inputs:,} inputs; {'; '.join(notes + (worst.wrong[:5] or ['all well']))}",
        flush=True,
    )
    return not worst.wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sample only, some seconds")
    quick = parser.parse_args().quick
    types = [np.float32, np.float64] if np.finfo(np.longdouble).nmant > 52 else [np.float32]
    if len(types) == 1:
        print("no type wider than float64 here: float32 only")
    return 0 if all([measure(name, dtype, quick) for name, dtype in itertools.product(LAYERS, types)]) else 1


if __name__ == "__main__":
    sys.exit(main())
