"""What the tests of several subjects share: finite differences, errors relative to a norm, awkward layouts, scripts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HANG = 600  # seconds: what has not ended by then hangs, on a machine however busy

# The command line in a process of its own. Where the tests themselves run with Ctrl-C ignored, as in the background
# of a shell, a child would inherit that.
COMMAND_LINE = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from gradcore.cli import main; sys.exit(main(sys.argv[1:]))",
]


def python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python process that uses this instruction set."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "GRADCORE_ISA": isa},
        cwd=Path(__file__).parent.parent,
        timeout=HANG,
        capture_output=True,
        text=True,
        check=False,
    )


@cache
def supported_isas() -> list[str]:
    """The instruction sets that would work here, as the error for an unknown one lists them."""
    refusal = python("none", "-c", "import gradcore").stderr.splitlines()[-1]
    return refusal.rpartition("support ")[2].split(", ")


def load_bench(name: str) -> ModuleType:
    """bench/<name>.py, which is a script and no part of a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "bench" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def central_difference(f: Callable[[], float], a: Array, step: float = 1e-5) -> Array:
    """The gradient of f() by the entries of `a`, a float64 array that f reads; error of order step**2."""
    gradient = np.zeros(a.shape)
    for index in np.ndindex(a.shape):
        kept = a[index]
        a[index] = kept + step
        above = f()
        a[index] = kept - step
        below = f()
        a[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


def relative_error(got: Any, want: Any) -> float:
    """The norm of the difference over the norm of `want`; 0 for two arrays of zeros, inf for other shapes or NaN."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return np.inf
    difference, norm = (float(np.linalg.norm(a.astype(np.float64).ravel())) for a in (got - want, want))
    if np.isnan(difference):
        return np.inf
    return difference / norm if norm > 0 else (np.inf if difference > 0 else 0.0)


def same_bits(a: Any, b: Any) -> bool:
    """Equal shape, dtype and bytes, so that NaN equals itself and -0.0 differs from 0.0."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def unaligned(a: Array) -> Array:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a: Array) -> Array:
    view = a.copy()
    view.flags.writeable = False
    return view


# Each gives an array equal to `a` that lies in memory in another way.
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "every second entry": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "Fortran order": np.asfortranarray,
    "inside a larger array": lambda a: np.pad(a, 2, constant_values=99)[(slice(2, -2),) * a.ndim],
    "unaligned": unaligned,
    "read-only": read_only,
}


def recurrent_params(
    mode: str,
    I: int,
    H: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    layer_norm: bool = False,
    seed: int = 0,
) -> dict[str, Array]:
    """Random float64 parameters of a stack of recurrent layers, by PyTorch's names and in its order."""
    rng, params, G = np.random.default_rng(seed), {}, {"LSTM": 4, "GRU": 3}.get(mode, 1)
    directions = ["", "_reverse"] if bidirectional else [""]
    for layer in range(num_layers):
        for direction in directions:
            shapes = {"weight_ih": (G * H, I if layer == 0 else H * len(directions)), "weight_hh": (G * H, H)}
            if bias:
                shapes |= {"bias_ih": (G * H,), "bias_hh": (G * H,)}
            if layer_norm:
                shapes |= {"norm_ih_weight": (G * H,), "norm_hh_weight": (G * H,)}
                shapes |= {"norm_c_weight": (H,), "norm_c_bias": (H,)} if mode == "LSTM" else {}
            for name, shape in shapes.items():
                scale = 1 / np.sqrt(shape[1]) if len(shape) == 2 else 0.3
                around = 1.0 if name.startswith("norm") and name.endswith("weight") else 0.0
                params[f"{name}_l{layer}{direction}"] = around + scale * rng.standard_normal(shape)
    return params


def as_state(mode: str, arrays: Iterable[Array]) -> Any:
    """A state as callers write it: h, or (h, c) for LSTM."""
    return tuple(arrays) if mode == "LSTM" else next(iter(arrays))


def parts(state: Any) -> tuple[Array, ...]:
    """The arrays of a state."""
    return state if isinstance(state, tuple) else (state,)


def random_state(mode: str, size: int, B: int, H: int, seed: int = 0) -> Any:
    """A float64 state, or gradient of one."""
    return as_state(mode, np.random.default_rng(seed).standard_normal((2, size, B, H)))


def masks_of(layer: Any, tape: Any) -> dict[str, Any]:
    """The zoneout and the recurrent dropout of a forward pass, for the twin."""
    from gradcore import reference

    trace, batch, H, masks = tape.trace, tape.trace.batch, layer.hidden_size, {}
    n, T, B = len(trace), batch.T, batch.B
    if layer.recurrent_dropout:
        rank = slice(None) if batch.rank is None else batch.rank
        masks["recurrent_masks"] = np.stack([noise.mask[rank] for noise in trace.noise]).astype(np.float64)
    if layer.zoneout:
        keep = np.zeros((len(layer.cell.states), n, T, B, H))
        for part, k, b in np.ndindex(len(keep), n, B):
            rows = batch.rows_of(b)
            keep[part, k, : len(rows), b] = reference.zoneout_mask(trace.noise[k].key, layer.zoneout, part, rows, H)
        masks["keep"] = list(keep)
    return masks
