"""The recurrent layers: against the NumPy twin, finite differences and PyTorch, and in every awkward situation."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import (
    HANG,
    LAYOUTS,
    Array,
    as_state,
    central_difference,
    parts,
    random_state,
    recurrent_params,
    relative_error,
    same_bits,
)

import gradcore
from gradcore import _kernels, reference
from gradcore._base.memory import Pool

pytestmark = pytest.mark.kernels

ROOT = Path(__file__).parents[2]

MODES = ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]
DTYPES = [np.float32, np.float64]


@dataclass(frozen=True)
class Case:
    """One network and one batch for it; the numbers follow from the seed and are the same in both dtypes."""

    mode: str
    H: int = 7
    I: int = 3
    B: int = 4
    T: int = 6
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    lengths: tuple[int, ...] | None = None
    dtype: Any = np.float64
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        flags = [name for name in ("bidirectional", "bias", "batch_first") if getattr(self, name)]
        sizes = [f"{name}{getattr(self, name)}" for name in "HIBT"]
        ends = [] if self.lengths is None else ["lengths"]
        return "-".join([self.mode, *sizes, f"layers{self.num_layers}", *flags, *ends])

    @property
    def size(self) -> int:
        return self.num_layers * (1 + self.bidirectional)

    def layer(self) -> Any:
        """The fast layer with the case's parameters."""
        kind, _, nonlinearity = self.mode.partition("_")
        options = dict(self.options, **({"nonlinearity": nonlinearity.lower()} if nonlinearity else {}))
        layer = getattr(gradcore, kind)(
            self.I,
            self.H,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            dtype=self.dtype,
            **options,
        )
        layer.load_state_dict({name: p.astype(self.dtype) for name, p in self.params().items()})
        return layer

    def params(self) -> dict[str, Array]:
        p = recurrent_params(
            self.mode,
            self.I,
            self.H,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=self.bias,
            seed=self.seed,
        )
        return {name: rounded(value, np.float64) for name, value in p.items()}

    def batch(self, dtype: Any = None) -> Batch:
        dtype = dtype or self.dtype
        rng = np.random.default_rng(self.seed + 1)
        x = rng.standard_normal((self.T, self.B, self.I))
        dy = rng.standard_normal((self.T, self.B, self.H * (1 + self.bidirectional)))
        state, dstate = (
            as_state(
                self.mode, [rounded(p, dtype) for p in parts(random_state(self.mode, self.size, self.B, self.H, n))]
            )
            for n in (self.seed + 2, self.seed + 3)
        )
        return Batch(rounded(x, dtype), state, self.lengths, rounded(dy, dtype), dstate)


@dataclass
class Batch:
    """What goes in, time first."""

    x: Array
    state: Any
    lengths: Any
    dy: Array
    dstate: Any


def rounded(a: Array, dtype: Any) -> Array:
    """Numbers that float32 holds exactly."""
    return a.astype(np.float32).astype(dtype)


def swapped(layer: Any, a: Array) -> Array:
    """From (T, B, ...) to the layer's own order of axes, or back."""
    return np.ascontiguousarray(a.swapaxes(0, 1)) if layer.batch_first else a


def named(name: str, state: Any) -> dict[str, Array]:
    return dict(zip((name + " h", name + " c"), parts(state), strict=False))


def run(layer: Any, batch: Batch, step_clip: float | None = None) -> dict[str, Array]:
    """Everything that the fast layer gives, by name, time first; the gradients alone of this call."""
    layer.zero_grad()
    y, tape = layer.forward(swapped(layer, batch.x), batch.state, batch.lengths)
    dx = layer.backward(tape, swapped(layer, batch.dy), batch.dstate, step_clip=step_clip)
    got = {
        "y": swapped(layer, y),
        **named("state", tape.state),
        "dx": swapped(layer, dx),
        **named("dstate", tape.dstate),
        **{"grad " + name: gradient.copy() for name, gradient in layer.grads.items()},
        "dh_norm": tape.telemetry.dh_norm,
        "dh_norm_per_sample": tape.telemetry.dh_norm_per_sample,
        "n_clipped": tape.telemetry.n_clipped,
    }
    return got | ({"dc_norm": tape.telemetry.dc_norm} if isinstance(tape.state, tuple) else {})


def expected(case: Case, step_clip: float | None = None) -> dict[str, Array]:
    """The same from the twin in float64."""
    batch = case.batch(np.float64)
    y, state, tape = reference.recurrent_forward(case.mode, case.params(), batch.x, batch.state, batch.lengths)
    got = reference.recurrent_backward(
        tape, batch.dy, batch.dstate, step_clip=np.inf if step_clip is None else step_clip
    )
    want = {
        "y": y,
        **named("state", state),
        "dx": got.dx,
        **named("dstate", got.dstate),
        **{"grad " + name: gradient for name, gradient in got.grads.items()},
        "dh_norm": np.sqrt((got.dh**2).sum(axis=(2, 3))),
        "dh_norm_per_sample": np.sqrt((got.dh**2).sum(axis=3)),
        "n_clipped": got.n_clipped,
    }
    return want | ({"dc_norm": np.sqrt((got.dc**2).sum(axis=(2, 3)))} if case.mode == "LSTM" else {})


def assert_close(got: dict[str, Array], want: dict[str, Array], dtype: Any) -> None:
    """To 1e-10 in float64; in float32 to 1e-5 forward and 1e-4 backward, of each array's norm."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        if dtype == np.float64:
            tolerance = 1e-10
        else:
            tolerance = 1e-5 if name == "y" or name.startswith("state") else 1e-4
        assert relative_error(got[name], value) <= tolerance, name


def assert_same_bits(got: dict[str, Array], want: dict[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert same_bits(got[name], value), name


def random_lengths(rng: np.random.Generator, B: int, T: int) -> tuple[int, ...]:
    """Unsorted, with zeros, with the full length and with ties."""
    return tuple(int(n) for n in rng.choice([0, T, T // 2, *range(T + 1)], size=B))


def sampled_cases(mode: str, n: int) -> list[Case]:
    """n cases in which every size and every flag occurs, in random combinations; the seeds are fixed."""
    rng = np.random.default_rng(MODES.index(mode))

    def column(*values: Any) -> list[Any]:
        repeated = [values[i % len(values)] for i in range(n)]
        rng.shuffle(repeated)
        return repeated

    cases = []
    columns = {
        "H": column(1, 3, 7, 16, 17, 33, 64, 65),
        "I": column(1, 2, 5, 31),
        "B": column(0, 1, 2, 3, 7, 14, 15, 33),
        "T": column(0, 1, 2, 5, 5, 37),
        "num_layers": column(1, 2, 3),
        "bidirectional": column(False, True),
        "bias": column(True, True, False),
        "batch_first": column(False, True),
        "dtype": column(*DTYPES),
    }
    for i in range(n):
        case = Case(mode, seed=i, **{name: values[i] for name, values in columns.items()})
        cases.append(replace(case, lengths=random_lengths(rng, case.B, case.T) if i % 3 else None))
    return cases


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for mode in MODES for case in sampled_cases(mode, 48)], ids=str)
def test_everything_agrees_with_the_twin(case: Case) -> None:
    got = run(case.layer(), case.batch())
    assert_close(got, expected(case), case.dtype)
    for name, array in got.items():
        if name.startswith(("dh_", "dc_")):
            assert array.dtype == np.float64, name
        elif name == "n_clipped":
            assert array.dtype.kind == "i"
            assert not array.any()
        else:
            assert array.dtype == case.dtype, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "I", "B"), [(128, 70, 3), (200, 257, 2), (257, 9, 1), (300, 16, 29)])
@pytest.mark.parametrize("mode", MODES)
def test_large_sizes_agree_with_the_twin(mode: str, H: int, I: int, B: int, dtype: Any) -> None:
    lengths = random_lengths(np.random.default_rng(H), B, 5) if B > 1 else None
    case = Case(mode, H, I, B, 5, bidirectional=H == 200, lengths=lengths, dtype=dtype)
    assert_close(run(case.layer(), case.batch()), expected(case), dtype)


@pytest.mark.parametrize("mode", MODES)
def test_saturated_gates_agree_with_the_twin(mode: str) -> None:
    case = Case(mode, bidirectional=True)
    layer, batch = case.layer(), case.batch()
    batch.x *= 2.0 ** np.arange(-2, 16, 3)[:, None, None]  # up to gates' arguments of some 1e5, where e**a overflows
    y, _, tape = reference.recurrent_forward(mode, case.params(), batch.x, batch.state)
    want = reference.recurrent_backward(tape, batch.dy, batch.dstate)
    got = run(layer, batch)
    assert relative_error(got["y"], y) < 1e-10
    assert relative_error(got["dx"], want.dx) < 1e-10
    for name, gradient in want.grads.items():
        assert relative_error(got["grad " + name], gradient) < 1e-10, name


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    B, T = draw(st.integers(0, 5)), draw(st.integers(0, 6))
    lengths = st.lists(st.integers(0, T), min_size=B, max_size=B).map(tuple)
    return Case(
        draw(st.sampled_from(MODES)),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 9)),
        B,
        T,
        draw(st.integers(1, 3)),
        *(draw(st.booleans()) for _ in range(3)),
        draw(st.none() | lengths),
        seed=draw(st.integers(0, 1000)),
    )


@given(case=small_cases(), layout=st.sampled_from([None, *LAYOUTS]), clip=st.none() | st.floats(0, 5))
def test_any_shape_in_any_layout_agrees_with_the_twin(case: Case, layout: str | None, clip: float | None) -> None:
    batch = case.batch()
    if layout is not None:
        batch = laid_out(batch, LAYOUTS[layout])
    got, want = run(case.layer(), batch, clip), expected(case, clip)
    del got["n_clipped"], want["n_clipped"]  # a norm may happen to equal the threshold but for rounding
    assert_close(got, want, np.float64)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"bias": False, "num_layers": 2, "bidirectional": True, "lengths": (3, 0, 4)},
    {"num_layers": 3, "batch_first": True, "lengths": (0, 4, 2)},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_backward_agrees_with_finite_differences(mode: str, variant: dict[str, Any]) -> None:
    case = Case(mode, H=5, I=2, B=3, T=4, **variant)
    layer, batch = case.layer(), case.batch()
    x, dy = swapped(layer, batch.x), swapped(layer, batch.dy)

    def loss() -> float:
        y, state = layer(x, batch.state, batch.lengths)
        return sum(float(np.vdot(a, b)) for a, b in zip((y, *parts(state)), (dy, *parts(batch.dstate)), strict=True))

    got = run(layer, batch)
    for name, p in layer.params.items():
        assert relative_error(got["grad " + name], central_difference(loss, p)) < 1e-6, name
    assert relative_error(swapped(layer, got["dx"]), central_difference(loss, x)) < 1e-6
    for name, part in named("dstate", batch.state).items():
        assert relative_error(got[name], central_difference(loss, part)) < 1e-6, name


@pytest.mark.peers
@pytest.mark.parametrize("lengths", [None, (6, 1, 3, 6, 5)], ids=["full", "lengths"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (1, True), (2, True), (3, False)])
@pytest.mark.parametrize("mode", MODES)
def test_outputs_and_gradients_agree_with_pytorch(
    mode: str, num_layers: int, bidirectional: bool, bias: bool, lengths: Any
) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # the arrays are tiny
    batch_first = num_layers == 3
    case = Case(mode, 9, 4, 5, 6, num_layers, bidirectional, bias, batch_first, lengths)
    layer, batch = case.layer(), case.batch()
    kind, _, nonlinearity = mode.partition("_")
    peer = getattr(torch.nn, kind)(
        case.I,
        case.H,
        num_layers,
        bias=bias,
        batch_first=batch_first,
        bidirectional=bidirectional,
        dtype=torch.float64,
        **({"nonlinearity": nonlinearity.lower()} if nonlinearity else {}),
    )
    peer.load_state_dict({name: torch.from_numpy(p) for name, p in layer.state_dict().items()})  # ours into theirs
    with torch.no_grad():
        for p in peer.parameters():
            p.mul_(1.25)
    layer.load_state_dict({name: p.numpy() for name, p in peer.state_dict().items()})  # and theirs into ours

    leaves = [torch.tensor(a, requires_grad=True) for a in (swapped(layer, batch.x), *parts(batch.state))]
    entering, dy = leaves[0], torch.tensor(swapped(layer, batch.dy))
    if lengths is not None:
        entering = torch.nn.utils.rnn.pack_padded_sequence(entering, torch.tensor(lengths), batch_first, False)
    y, state = peer(entering, as_state(mode, leaves[1:]))
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first, total_length=case.T)
    pairs = zip((y, *parts(state)), (dy, *map(torch.tensor, parts(batch.dstate))), strict=True)
    sum((a * b).sum() for a, b in pairs).backward()

    got = run(layer, batch)
    want = {
        "y": swapped(layer, y.detach().numpy()),
        **named("state", tuple(p.detach().numpy() for p in parts(state))),
        "dx": swapped(layer, leaves[0].grad.numpy()),
        **named("dstate", tuple(leaf.grad.numpy() for leaf in leaves[1:])),
        **{"grad " + name: p.grad.numpy() for name, p in peer.named_parameters()},
    }
    for name, value in want.items():
        assert relative_error(got[name], value) < 1e-10, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_record_gives_one_step_as_the_twin_does(mode: str, dtype: Any) -> None:
    case = Case(mode, num_layers=2, bidirectional=True, lengths=(3, 0, 6, 5), dtype=dtype)
    batch = case.batch()
    _, tape = case.layer().forward(batch.x, batch.state, batch.lengths)
    batch = case.batch(np.float64)
    _, _, want = reference.recurrent_forward(mode, case.params(), batch.x, batch.state, batch.lengths)
    for index in range(case.size):
        for b, length in enumerate(case.lengths):
            for t in range(length):
                step = tape.record(index, t, b)
                assert relative_error(step.gates, want.gates[index, t, b]) < 1e-5
                assert relative_error(step.h, want.h_in[index, t, b]) < 1e-5
                if mode == "LSTM":
                    assert relative_error(step.c, want.c_in[index, t, b]) < 1e-5
                else:
                    assert step.c is None


# ---- telemetry and step clipping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [None, (3, 0, 6, 5)], ids=["full", "lengths"])
@pytest.mark.parametrize("mode", MODES)
def test_step_clip_agrees_with_the_twin(mode: str, lengths: Any, dtype: Any) -> None:
    case = Case(mode, num_layers=2, bidirectional=True, lengths=lengths, dtype=dtype)
    norms = np.sort(expected(case)["dh_norm_per_sample"].ravel())
    norms = norms[norms > 0]
    clip = float(np.sqrt(norms[norms.size // 2] * norms[norms.size // 2 + 1]))  # between two norms: no tie
    got, want = run(case.layer(), case.batch(), clip), expected(case, clip)
    assert_close(got, want, dtype)
    assert got["n_clipped"].sum() > 0
    assert np.array_equal(got["n_clipped"], want["n_clipped"])
    assert relative_error(got["dx"], expected(case)["dx"]) > 1e-2  # clipping did something


@pytest.mark.parametrize("mode", MODES)
def test_step_clip_above_every_norm_changes_no_bit(mode: str) -> None:
    case = Case(mode, num_layers=2, lengths=(3, 0, 6, 5), dtype=np.float32)
    layer, batch = case.layer(), case.batch()
    assert_same_bits(run(layer, batch, 1e6), run(layer, batch))


@pytest.mark.parametrize(
    ("dtype", "size", "clips"),
    [(np.float32, 1e38, (1.0, 0.01, 1e-20)), (np.float64, 1e307, (1.0, 1e-10, 1e-200))],
    ids=["float32", "float64"],
)
@pytest.mark.parametrize("mode", MODES)
def test_step_clip_far_below_a_norm_keeps_the_direction(
    mode: str, dtype: Any, size: float, clips: tuple[float, ...]
) -> None:
    """What is clipped is the same however long it was, also where clip / norm is no number that the dtype has."""
    layer = Case(mode, bias=False, dtype=dtype).layer()
    twin = Case(mode, bias=False).layer()
    x, dy = Case(mode).batch().x, Case(mode).batch().dy
    dy[-1] = np.abs(dy[-1]) + 1  # no sequence without a gradient, for units at rest of ReLU too
    tape, twin_tape = layer.forward(x.astype(dtype))[1], twin.forward(x)[1]
    for clip in clips:
        layer.zero_grad()
        twin.zero_grad()
        dx = layer.backward(tape, (dy * size / 5).astype(dtype), step_clip=clip)
        want = twin.backward(twin_tape, dy * 1e30, step_clip=1.0)  # nothing else adds to such a dL/dh_t
        assert (tape.telemetry.n_clipped == tape.telemetry.n_clipped.max()).all()
        assert (tape.telemetry.dh_norm > size / 50).all()
        assert relative_error(dx / clip, want) < (1e-5 if dtype is np.float32 else 1e-11)
        for name, gradient in layer.grads.items():
            assert relative_error(gradient / clip, twin.grads[name]) < (1e-5 if dtype is np.float32 else 1e-11), name


@pytest.mark.parametrize("mode", MODES)
def test_step_clip_of_zero_stops_every_gradient(mode: str) -> None:
    case = Case(mode)
    batch = case.batch()
    if mode == "LSTM":
        batch.dstate = (batch.dstate[0], np.zeros_like(batch.dstate[1]))  # dL/dc is not clipped
    got = run(case.layer(), batch, 0.0)
    assert not any(value.any() for name, value in got.items() if name.startswith(("dx", "grad", "dstate")))
    assert (got["n_clipped"] == case.B).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_first_nonfinite_says_where_it_came_in(mode: str, bidirectional: bool, value: float) -> None:
    case = Case(mode, num_layers=2, bidirectional=bidirectional, lengths=(6, 3, 0, 4))
    layer, clean = case.layer(), case.batch()

    def first(dy: Array) -> Any:
        _, tape = layer.forward(clean.x, clean.state, clean.lengths)
        layer.backward(tape, dy, clean.dstate)
        return tape.telemetry.first_nonfinite

    assert first(clean.dy) is None
    for direction in range(1 + bidirectional):
        for t, b in [(0, 0), (2, 1), (5, 0), (3, 3)]:
            dy = clean.dy.copy()
            dy[t, b, direction * case.H + 4] = value
            assert first(dy) == (1, direction, t)
    dy = clean.dy.copy()
    dy[3:, 1], dy[:, 2] = value, value  # past the ends
    assert first(dy) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_first_nonfinite_finds_a_nonfinite_final_gradient_at_each_sequences_own_end(mode: str, value: float) -> None:
    case = Case(mode, lengths=(6, 3, 0, 4))
    layer, batch = case.layer(), case.batch()
    for b, length in enumerate(case.lengths):
        dstate = copy.deepcopy(batch.dstate)
        parts(dstate)[0][0, b, 2] = value
        _, tape = layer.forward(batch.x, batch.state, batch.lengths)
        layer.backward(tape, batch.dy, dstate)
        assert tape.telemetry.first_nonfinite == ((0, 0, length - 1) if length else None)


def doubling(dtype: Any, T: int) -> tuple[Any, Array]:
    """A layer whose h and whose gradient, walking back, double at each step, and its input."""
    layer = gradcore.RNN(1, 3, nonlinearity="relu", bias=False, dtype=dtype)
    layer.params["weight_ih_l0"][...] = 0
    layer.params["weight_hh_l0"][...] = 2 * np.eye(3)
    return layer, np.zeros((T, 1, 1), dtype)


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 1e38), (np.float64, 5e307)])
def test_first_nonfinite_finds_the_step_of_an_overflow(dtype: Any, large: float) -> None:
    layer, x = doubling(dtype, 5)
    tape = layer.forward(x, np.full((1, 1, 3), 1e-3, dtype))[1]
    layer.backward(tape, np.zeros((5, 1, 3), dtype), np.full((1, 1, 3), large, dtype))
    assert tape.telemetry.first_nonfinite == (0, 0, 2)  # large, 2 large, then more than the dtype holds


@pytest.mark.parametrize(
    ("dtype", "size"), [(np.float32, 1e30), (np.float32, 1e-30), (np.float64, 1e140), (np.float64, 1e-140)]
)
def test_norms_of_large_and_small_gradients_are_right(dtype: Any, size: float) -> None:
    layer, x = doubling(dtype, 3)
    tape = layer.forward(x, np.full((1, 1, 3), 1e-3, dtype))[1]
    layer.backward(tape, np.zeros((3, 1, 3), dtype), np.full((1, 1, 3), size, dtype))
    want = np.sqrt(3) * float(dtype(size)) * np.array([[4, 2, 1]])
    assert relative_error(tape.telemetry.dh_norm / size, want / size) < 1e-6
    assert tape.telemetry.first_nonfinite is None


# ---- sequences, states, batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_two_halves_with_the_state_handed_on_are_one_run(mode: str) -> None:
    case = Case(mode, T=11, num_layers=2)
    layer, batch = case.layer(), case.batch()
    whole = run(layer, batch)
    layer.zero_grad()
    y1, tape1 = layer.forward(batch.x[:4], batch.state)
    y2, tape2 = layer.forward(batch.x[4:], tape1.state)
    dx2 = layer.backward(tape2, batch.dy[4:], batch.dstate)
    dx1 = layer.backward(tape1, batch.dy[:4], tape2.dstate)
    halves = {
        "y": np.concatenate([y1, y2]),
        **named("state", tape2.state),
        "dx": np.concatenate([dx1, dx2]),
        **named("dstate", tape1.dstate),
        **{"grad " + name: gradient for name, gradient in layer.grads.items()},
        "dh_norm": np.concatenate([tape1.telemetry.dh_norm, tape2.telemetry.dh_norm], axis=1),
    }
    for name, value in halves.items():
        assert relative_error(value, whole[name]) < 1e-12, name


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_what_lies_past_an_end_has_no_effect_at_all(mode: str, bidirectional: bool, garbage: float) -> None:
    case = Case(mode, B=5, num_layers=2, bidirectional=bidirectional, lengths=(2, 6, 0, 5, 2))
    layer, batch, dirty = case.layer(), case.batch(), case.batch()
    for b, length in enumerate(case.lengths):
        dirty.x[length:, b] = dirty.dy[length:, b] = garbage
    got = run(layer, dirty)
    assert_same_bits(got, run(layer, batch))
    for b, length in enumerate(case.lengths):
        assert not got["y"][length:, b].any()
        assert not got["dx"][length:, b].any()
        assert not got["dh_norm_per_sample"][:, length:, b].any()
    for name, part in named("state", batch.state).items():
        assert same_bits(got[name][:, 2], part[:, 2]), name  # length 0: the final state is the initial one


def test_relu_lets_nan_through_in_both_passes() -> None:
    layer, x = doubling(np.float64, 3)
    layer.params["weight_ih_l0"][...] = 1
    x[1] = np.nan
    y, tape = layer.forward(x, np.ones((1, 1, 3)))
    dx = layer.backward(tape, np.ones_like(y))
    assert np.isnan(y).ravel().tolist() == [False] * 3 + [True] * 6
    assert dx.ravel().tolist() == [21.0, 9.0, 3.0]  # a unit that is NaN is not one that is off: as in PyTorch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_a_sample_does_not_see_the_others(mode: str, dtype: Any) -> None:
    case = Case(mode, H=17, B=16, num_layers=2, bidirectional=True, dtype=dtype)
    layer, batch, other = case.layer(), case.batch(), case.batch()
    other.x[:, 5] = other.dy[:, 5] = np.nan
    clean, spoilt = run(layer, batch), run(layer, other)
    rest = np.arange(case.B) != 5
    for name in ("y", "dx"):
        assert same_bits(clean[name][:, rest], spoilt[name][:, rest]), name
        assert np.isnan(spoilt[name][:, 5]).any()
    for name in [name for name in clean if "state" in name]:
        assert same_bits(clean[name][:, rest], spoilt[name][:, rest]), name
    assert same_bits(clean["dh_norm_per_sample"][..., rest], spoilt["dh_norm_per_sample"][..., rest])


@pytest.mark.parametrize("mode", MODES)
def test_a_shuffled_batch_gives_the_shuffled_result(mode: str) -> None:
    case = Case(mode, B=7, num_layers=2, bidirectional=True, lengths=(3, 0, 6, 5, 1, 6, 3))
    layer, batch = case.layer(), case.batch()
    order = np.random.default_rng(0).permutation(case.B)
    state, dstate = (as_state(mode, [p[:, order] for p in parts(s)]) for s in (batch.state, batch.dstate))
    shuffled = Batch(batch.x[:, order], state, np.array(case.lengths)[order], batch.dy[:, order], dstate)
    want, got = run(layer, batch), run(layer, shuffled)
    for name, value in want.items():
        if name.startswith(("y", "dx", "state", "dstate")):
            assert relative_error(got[name], value[:, order]) < 1e-13, name
        elif name == "dh_norm_per_sample":
            assert relative_error(got[name], value[..., order]) < 1e-13
        else:
            assert relative_error(got[name], value) < 1e-13, name


@pytest.mark.parametrize("mode", MODES)
def test_lengths_of_any_integer_type_and_none_for_full(mode: str) -> None:
    case = Case(mode, bidirectional=True)
    layer, batch = case.layer(), case.batch()
    want = run(layer, batch)
    for lengths in ([6] * 4, (6,) * 4, *(np.full(4, 6, kind) for kind in (np.int8, np.uint16, np.int32, np.uint64))):
        assert_same_bits(run(layer, replace(batch, lengths=lengths)), want)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_no_steps_or_no_samples(mode: str, shape: tuple[int, int]) -> None:
    case = Case(mode, T=shape[0], B=shape[1], num_layers=2, bidirectional=True)
    layer, batch = case.layer(), case.batch()
    for lengths in (None, np.zeros(case.B, int)):
        got = run(layer, replace(batch, lengths=lengths))
        assert got["y"].shape == (*shape, 14)
        assert got["dx"].shape == (*shape, 3)
        assert got["dh_norm"].shape == (4, shape[0])
        assert got["dh_norm_per_sample"].shape == (4, *shape)
        for name, part in {**named("state", batch.state), **named("dstate", batch.dstate)}.items():
            assert same_bits(got[name], part), name
        assert not layer.flat_grads.any()
        y, state = layer(batch.x, batch.state, lengths)
        assert y.shape == (*shape, 14)
        assert all(same_bits(a, b) for a, b in zip(parts(state), parts(batch.state), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_lengths_that_are_all_zero(mode: str) -> None:
    case = Case(mode, num_layers=2, bidirectional=True, lengths=(0, 0, 0, 0))
    batch = case.batch()
    got = run(case.layer(), batch)
    for name, part in {**named("state", batch.state), **named("dstate", batch.dstate)}.items():
        assert same_bits(got.pop(name), part), name
    assert not any(value.any() for value in got.values())


@pytest.mark.parametrize("mode", MODES)
def test_no_state_is_a_state_of_zeros(mode: str) -> None:
    case = Case(mode, num_layers=2, bidirectional=True, dtype=np.float32)
    layer, batch = case.layer(), case.batch()
    zeros = as_state(mode, [np.zeros((4, case.B, case.H), np.float32)] * 2)
    want = run(layer, replace(batch, state=zeros, dstate=zeros))
    assert_same_bits(run(layer, replace(batch, state=None, dstate=None)), want)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_inference_gives_the_bits_of_forward(mode: str, dtype: Any, variant: dict[str, Any]) -> None:
    case = Case(mode, H=17, B=3, dtype=dtype, **variant)
    layer, batch = case.layer(), case.batch()
    x = swapped(layer, batch.x)
    y, state = layer(x, batch.state, batch.lengths)
    y_tape, tape = layer.forward(x, batch.state, batch.lengths)
    assert same_bits(y, y_tape)
    assert isinstance(state, tuple) == (mode == "LSTM")
    for a, b in zip(parts(state), parts(tape.state), strict=True):
        assert same_bits(a, b)


# ---- tapes, threads, processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_gradients_add_up_over_interleaved_tapes(mode: str) -> None:
    cases = [
        Case(mode, num_layers=2, bidirectional=True, seed=0),
        Case(mode, num_layers=2, bidirectional=True, T=9, B=2),
    ]
    layer, batches = cases[0].layer(), [case.batch() for case in cases]
    alone = [run(layer, batch) for batch in batches]
    layer.zero_grad()
    tapes = [layer.forward(batch.x, batch.state)[1] for batch in batches]
    for tape, batch, want in zip(tapes, batches, alone, strict=True):
        assert same_bits(layer.backward(tape, batch.dy, batch.dstate), want["dx"])
        assert same_bits(tape.telemetry.dh_norm, want["dh_norm"])
    for name, gradient in layer.grads.items():
        assert relative_error(gradient, sum(want["grad " + name] for want in alone)) < 1e-14, name


@pytest.mark.parametrize("mode", MODES)
def test_a_second_backward_of_one_tape_gives_the_same_and_adds_again(mode: str) -> None:
    case = Case(mode, num_layers=2, bidirectional=True, lengths=(3, 0, 6, 5))
    layer, batch = case.layer(), case.batch()
    want = run(layer, batch)
    layer.zero_grad()
    _, tape = layer.forward(batch.x, batch.state, batch.lengths)
    for _ in range(2):
        assert same_bits(layer.backward(tape, batch.dy, batch.dstate, step_clip=np.inf), want["dx"])
        assert same_bits(tape.telemetry.dh_norm, want["dh_norm"])
    for name, gradient in layer.grads.items():
        assert relative_error(gradient, 2 * want["grad " + name]) < 1e-14, name


@pytest.mark.parametrize("mode", MODES)
def test_results_outlive_their_tape_and_belong_to_the_caller(mode: str) -> None:
    case = Case(mode, num_layers=2, lengths=(3, 0, 6, 5))
    layer, batch = case.layer(), case.batch()
    first = run(layer, batch)  # its tape is gone by now
    kept = {name: value.copy() for name, value in first.items()}
    for value in first.values():
        assert value.flags.writeable
    for _ in range(3):
        run(layer, replace(batch, x=batch.x + 1, dy=batch.dy - 1))
    assert_same_bits(first, kept)
    y, tape = layer.forward(batch.x, batch.state, batch.lengths)
    y[...] = np.nan  # the caller's own array: the tape has what it needs
    assert same_bits(layer.backward(tape, batch.dy, batch.dstate), kept["dx"])


@pytest.mark.parametrize("mode", MODES)
def test_parameters_written_in_place_count_at_once(mode: str) -> None:
    case = Case(mode, num_layers=2)
    layer, batch = case.layer(), case.batch()
    run(layer, batch)
    layer.flat_params *= 0.5
    layer.params["weight_hh_l1"][...] *= 2
    fresh = case.layer()
    fresh.load_state_dict(layer.state_dict())
    assert_same_bits(run(layer, batch), run(fresh, batch))


THREADED = [
    {"H": 65, "I": 31, "B": 33, "T": 12},
    {"H": 33, "I": 5, "B": 15, "T": 12, "num_layers": 2, "bidirectional": True, "lengths": (12, 3, 0, 7, 9) * 3},
    {"H": 257, "I": 40, "B": 2, "T": 5},
    {"H": 96, "I": 3, "B": 1, "T": 8, "bidirectional": True},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", THREADED, ids=lambda sizes: f"H{sizes['H']}-B{sizes['B']}")
@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_for_any_number_of_threads(
    mode: str, sizes: dict[str, Any], dtype: Any, with_thread_counts: Callable[..., Any]
) -> None:
    case = Case(mode, dtype=dtype, **sizes)
    layer, batch = case.layer(), case.batch()
    first, *others = with_thread_counts(lambda: run(layer, batch, 0.5) | {"inferred": layer(batch.x, batch.state)[0]})
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("sizes", [(60, 40, 300, 64), (60, 40, 3, 64), (300, 6, 32, 96), (200, 1, 64, 256)])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_over_many_chunks(  # of steps, between which threads may run ahead of each other
    mode: str, sizes: tuple[int, int, int, int], ragged: bool, with_thread_counts: Callable[..., Any]
) -> None:
    T, B, I, H = sizes
    lengths = np.random.default_rng(1).integers(T // 2 if B == 1 else 0, T + 1, B) if ragged else None
    case = Case(mode, dtype=np.float32, T=T, B=B, I=I, H=H)
    layer, batch = case.layer(), case.batch()

    def results() -> dict[str, Array]:
        layer.zero_grad()
        y, tape = layer.forward(batch.x, batch.state, lengths)
        dx = layer.backward(tape, batch.dy)
        inferred = layer(batch.x, batch.state, lengths)[0]
        return {"y": y.copy(), "dx": dx, "grads": layer.flat_grads.copy(), "inferred": inferred}

    first, *others = with_thread_counts(lambda: [results() for _ in range(2)])
    for other in others:
        for again in other:
            assert_same_bits(again, first[0])


@pytest.mark.parametrize("H", [32, 512])
@pytest.mark.parametrize("mode", MODES)
def test_the_tape_has_the_size_that_its_documentation_says(mode: str, H: int) -> None:
    layer = Case(mode, H=H, num_layers=2, dtype=np.float32).layer()
    _, tape = layer.forward(np.zeros((5, 4, layer.input_size), np.float32))
    K = 1 if mode.startswith("RNN") else 4
    parts = [K * H, H] + [H] * (mode == "LSTM")
    rows = [4 * n + 64 * (4 * n % 2048 == 0) for n in parts]
    assert tape.nbytes == 5 * 4 * (2 * sum(rows) + 4 * H)  # two layers, and the input of the second


@pytest.mark.parametrize("mode", MODES)
def test_the_second_call_of_a_shape_allocates_nothing_large(mode: str) -> None:
    layer = Case(mode, I=32, H=64, num_layers=2, dtype=np.float32).layer()
    x, lengths = np.ones((60, 16, 32), np.float32), np.arange(45, 61)
    dy = np.ones((60, 16, 64), np.float32)

    def call() -> None:
        _, tape = layer.forward(x, lengths=lengths)
        layer.backward(tape, dy)

    call()
    tracemalloc.start()
    try:
        call()
        assert tracemalloc.get_traced_memory()[1] < 150_000  # y alone has 240 KB, the tape more than 1 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", MODES)
def test_python_threads_share_a_layer_each_with_its_own_tape(mode: str) -> None:
    case = Case(mode, H=48, I=16, B=8, T=20)
    layer = case.layer()
    batches = [replace(case, seed=seed).batch() for seed in range(3)]
    wants = [run(layer, batch) for batch in batches]
    rounds, wrong = 8, []
    barrier = threading.Barrier(len(batches))

    def work(batch: Batch, want: dict[str, Array]) -> None:
        for _ in range(rounds):
            barrier.wait(HANG)
            y, tape = layer.forward(batch.x, batch.state)
            dx = layer.backward(tape, batch.dy, batch.dstate)
            if not (same_bits(y, want["y"]) and same_bits(dx, want["dx"])):
                wrong.append(1)

    layer.zero_grad()
    threads = [threading.Thread(target=work, args=pair) for pair in zip(batches, wants, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert not wrong
    for name, gradient in layer.grads.items():  # and no addition was lost
        assert relative_error(gradient, rounds * sum(want["grad " + name] for want in wants)) < 1e-12, name


def test_other_python_threads_run_while_a_kernel_does(restore_threads: None) -> None:
    layer, x = gradcore.LSTM(64, 256), np.ones((400, 32, 64), np.float32)
    gradcore.set_num_threads(1)
    count, running = 0, True

    def counting() -> None:
        nonlocal count
        while running:
            count += 1
            time.sleep(0)

    def counted_meanwhile() -> int:
        before = count
        layer(x)
        return count - before

    thread = threading.Thread(target=counting)
    thread.start()
    try:  # a busy machine may starve the thread once, not each time
        assert any(counted_meanwhile() > 50 for _ in range(10))
    finally:
        running = False
        thread.join()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_processors_floating_point_mode_is_left_alone(dtype: Any) -> None:
    tiny = np.full(64, np.finfo(dtype).smallest_subnormal * 8)
    run(Case("LSTM", dtype=dtype).layer(), Case("LSTM", dtype=dtype).batch())
    assert (tiny * dtype(0.5)).all()  # subnormals are still there


FORK = """
import os, sys
import numpy as np
import gradcore

gradcore.set_num_threads(2)
layer = gradcore.LSTM(20, 96, 2, rng=np.random.default_rng(0))
x = np.random.default_rng(1).standard_normal((20, 32, 20)).astype(np.float32)

def result():
    layer.zero_grad()
    y, tape = layer.forward(x)
    dx = layer.backward(tape, y)
    return y.tobytes() + dx.tobytes() + layer.flat_grads.tobytes()

before = result()
child = os.fork()
if child == 0:
    os._exit(0 if result() == before else 7)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or (0 if result() == before else 8))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_the_same_bits_and_does_not_hang() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], timeout=HANG, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FOREIGN_FORK = """
import ctypes, os, sys
import numpy as np
import gradcore

gradcore.set_num_threads(2)
gomp = ctypes.CDLL(next(line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line))
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
gomp.GOMP_parallel(region, None, 2, 0)  # as another library of the process would

layer = gradcore.LSTM(20, 96, rng=np.random.default_rng(0))
child = os.fork()
if child == 0:
    layer(np.ones((20, 32, 20), np.float32))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="finds libgomp in /proc")
@pytest.mark.skipif(not gradcore.info()["openmp"], reason="built without OpenMP")
def test_a_forked_child_does_not_hang_where_another_library_has_used_openmp() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN_FORK], timeout=HANG, capture_output=True, text=True, check=False
    )
    if "StopIteration" in done.stderr:
        pytest.skip("built with another OpenMP than libgomp")
    assert done.returncode == 0, done.stderr


BUSY_POOL_FORK = """
import os, sys, threading, warnings
import numpy as np
import gradcore

warnings.simplefilter("ignore")  # of forking with threads
layer = gradcore.LSTM(20, 96, rng=np.random.default_rng(0))
x = np.ones((20, 32, 20), np.float32)
layer(x)
entered, forked = threading.Event(), threading.Event()

class Slow(int):
    def __le__(self, other):
        entered.set()
        forked.wait()
        return int(self) <= other

thread = threading.Thread(target=layer._pool.take, args=(Slow(100_000),))
thread.start()
entered.wait()  # that thread is in the middle of taking a buffer
child = os.fork()
if child == 0:
    layer(x)
    os._exit(0)
forked.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_while_a_thread_takes_a_buffer_does_not_hang() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUSY_POOL_FORK], timeout=HANG, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_a_copied_tape_and_views_of_a_tape_keep_what_they_show(mode: str) -> None:
    layer, x = Case(mode, H=30, I=20, dtype=np.float32).layer(), np.ones((50, 16, 20), np.float32)
    y, tape = layer.forward(x)
    copied, gates = copy.copy(tape), tape.trace.arrays[0].gates
    before = gates.copy()
    layer.backward(tape, y)
    expected = layer.flat_grads.copy()
    del tape
    others = [layer.forward(x * factor)[1] for factor in (2, 3, 4)]
    np.testing.assert_array_equal(gates, before)
    layer.zero_grad()
    layer.backward(copied, y)
    np.testing.assert_array_equal(layer.flat_grads, expected)
    del copied, gates, others
    tapes = [layer.forward(x * factor)[1] for factor in (2, 3, 4, 5)]
    assert len({each.trace.arrays[0].gates.ctypes.data for each in tapes}) == 4


# ---- what callers hand in ------------------------------------------------------------------------------------------


def laid_out(batch: Batch, layout: Callable[[Array], Array]) -> Batch:
    def state(s: Any) -> Any:
        return tuple(layout(p) for p in s) if isinstance(s, tuple) else layout(s)

    lengths = None if batch.lengths is None else layout(np.array(batch.lengths, dtype=np.int64))
    return Batch(layout(batch.x), state(batch.state), lengths, layout(batch.dy), state(batch.dstate))


def contents(batch: Batch) -> list[bytes]:
    return [a.tobytes() for a in (batch.x, *parts(batch.state), batch.dy, *parts(batch.dstate))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_any_layout_gives_the_bits_of_a_copy_and_is_not_changed(mode: str, dtype: Any, layout: str) -> None:
    case = Case(mode, num_layers=2, bidirectional=True, lengths=(3, 0, 6, 5), dtype=dtype)
    layer, batch = case.layer(), case.batch()
    awkward = laid_out(batch, LAYOUTS[layout])
    before = contents(batch)
    assert contents(awkward) == before
    assert_same_bits(run(layer, awkward), run(layer, batch))
    assert contents(awkward) == before
    assert contents(batch) == before


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64, np.complex128, np.bool_, object, ">f8"])
@pytest.mark.parametrize("where", ["x", "dy", "state", "dstate"])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_another_dtype_raises_and_says_what_to_do(mode: str, where: str, kind: Any) -> None:
    case = Case(mode)
    layer, batch = case.layer(), case.batch()
    value = getattr(batch, where)
    with np.errstate(invalid="ignore"):
        cast = tuple(p.astype(kind) for p in value) if isinstance(value, tuple) else value.astype(kind)
    with pytest.raises(TypeError, match=rf"^{where}.*expected float64, got .*astype") as info:
        run(layer, replace(batch, **{where: cast}))
    assert str(np.dtype(kind)) in str(info.value)
    assert not layer.flat_grads.any()


def test_wrong_shapes_raise_with_expected_and_given() -> None:
    layer = gradcore.LSTM(16, 8)
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    x, tape = zeros(50, 4, 16), layer.forward(zeros(50, 4, 16))[1]

    def raises(message: str, call: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()

    raises("x: expected shape (T, B, 16), got (50, 4, 15)", lambda: layer(zeros(50, 4, 15)))
    raises("x: expected shape (T, B, 16), got (50, 4, 15)", lambda: layer.forward(zeros(50, 4, 15)))
    raises("x: expected shape (T, B, 16), got (4, 16)", lambda: layer.forward(zeros(4, 16)))
    raises("x: expected shape (T, B, 16), got (1, 50, 4, 16)", lambda: layer.forward(zeros(1, 50, 4, 16)))
    raises("x: expected shape (T, B, 16), got ()", lambda: layer.forward(np.float32(1)))
    raises(
        "x: expected shape (B, T, 16), got (50, 4, 15)", lambda: gradcore.GRU(16, 8, batch_first=True)(zeros(50, 4, 15))
    )
    raises("dy: expected shape (50, 4, 8), got (50, 4, 16)", lambda: layer.backward(tape, x))
    raises("dy: expected shape (50, 4, 8), got (4, 50, 8)", lambda: layer.backward(tape, zeros(4, 50, 8)))
    good = zeros(1, 4, 8)
    for bad in (zeros(1, 4, 9), zeros(2, 4, 8), zeros(1, 3, 8), zeros(4, 8)):
        ending = f"expected shape (1, 4, 8), got {bad.shape}"
        raises(ending, lambda bad=bad: layer(x, (bad, good)))
        raises(ending, lambda bad=bad: layer.forward(x, (good, bad)))
        raises(ending, lambda bad=bad: layer.backward(tape, zeros(50, 4, 8), (good, bad)))
        raises(ending, lambda bad=bad: gradcore.GRU(16, 8)(x, bad))
    assert not layer.flat_grads.any()


@pytest.mark.parametrize("state", ["array", "one", "three", "number"])
def test_a_state_of_the_wrong_kind_raises(state: str) -> None:
    layer, h = gradcore.LSTM(2, 3), np.zeros((1, 4, 3), np.float32)
    given_state: Any = {"array": h, "one": (h,), "three": (h, h, h), "number": 1.0}[state]
    with pytest.raises((TypeError, ValueError), match=r"^state: "):
        layer(np.zeros((5, 4, 2), np.float32), given_state)
    with pytest.raises((TypeError, ValueError), match=r"^state"):
        gradcore.GRU(2, 3)(np.zeros((5, 4, 2), np.float32), (h, h))


@pytest.mark.parametrize(
    ("lengths", "error"),
    [
        ([1, 2, -1, 3], ValueError),
        ([1, 2, 7, 3], ValueError),
        ([1, 2, 2**62, 3], ValueError),
        ([1, 2, 3], ValueError),
        ([[1, 2, 3, 3]], ValueError),
        (3, ValueError),
        ([1.0, 2.0, 3.0, 3.0], TypeError),
        ([1, 2, None, 3], TypeError),
        (np.array([2**63 + 1, 1, 1, 1], np.uint64), ValueError),
        ("abcd", (TypeError, ValueError)),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", ["__call__", "forward"])
def test_wrong_lengths_raise(lengths: Any, error: Any, call: str) -> None:
    layer = gradcore.GRU(2, 3)
    with pytest.raises(error, match=r"^lengths: "):
        getattr(layer, call)(np.zeros((6, 4, 2), np.float32), lengths=lengths)


@pytest.mark.parametrize(
    ("offsets", "B"),
    [
        ([0, 200_000], 1),
        ([0, 2, 1], 2),
        ([0, 1, 3], 2),
        ([0, -1, 0], 2),
        ([1, 2, 3], 2),
        ([0, 2**62, -(2**63)], 2),
        ([0, 2**62], 2**62),
        ([0, 1], 0),
        ([0], -1),
        ([], 1),
    ],
)
def test_kernels_refuse_steps_that_do_not_follow_each_other(offsets: list[int], B: int) -> None:
    F, H, buffers = 2, 3, Pool()
    weights = [np.zeros(shape, np.float32) for shape in ((H, F), (H, H), (H,), (H,))]
    x, y, h = (np.zeros(shape, np.float32) for shape in ((4, F), (4, H), (2, H)))
    gates, h_in = (np.zeros((4, 64), np.float32) for _ in range(2))
    steps, tape, out = (_kernels.RNN_TANH, False, np.array(offsets, np.intp), B), (gates, h_in, None), (y, None, 0)
    with pytest.raises(ValueError, match=r"^kernel argument: expected "):
        _kernels.recurrent_forward(steps, weights, x, tape, out, (h, None), buffers.take)
    with pytest.raises(ValueError, match=r"^kernel argument: expected "):
        _kernels.recurrent_backward(
            steps, (weights, weights), (x, None, False), tape, out, (h, None), (1.0, None, None), buffers.take
        )


@pytest.mark.parametrize("cell", _kernels.cells())
def test_kernels_refuse_a_tape_or_state_without_all_its_parts(cell: str) -> None:
    kind, G, has_cell = (_kernels.cells()[cell][name] for name in ("kind", "gates", "has_cell"))
    F, H, take = 2, 3, Pool().take
    weights: list[Any] = [np.zeros(shape, np.float32) for shape in ((G * H, F), (G * H, H), (G * H,), (G * H,))]
    x, y, part, gates = (np.zeros((4, n), np.float32) for n in (F, H, 256, 256))
    c = part if has_cell else None
    whole = {"weights": weights, "gates": gates, "h_in": part, "c_in": c, "h": part, "c": c}
    steps, out = (kind, False, np.array([0, 4], np.intp), 4), (y, None, 0)

    def forward(weights: Any, gates: Any, h_in: Any, c_in: Any, h: Any, c: Any) -> Any:
        return _kernels.recurrent_forward(steps, weights, x, (gates, h_in, c_in), out, (h, c), take)

    def backward(weights: Any, gates: Any, h_in: Any, c_in: Any, h: Any, c: Any) -> Any:
        return _kernels.recurrent_backward(
            steps, (weights, weights), (x, None, False), (gates, h_in, c_in), out, (h, c), (1.0, None, None), take
        )

    def factors(weights: Any, gates: Any, h_in: Any, c_in: Any, h: Any, c: Any) -> Any:
        return _kernels.jacobian_factors(kind, H, np.arange(4), (gates, h_in, c_in))

    for kernel in (forward, backward, factors):
        kernel(**whole)
    wrong = [{"weights": [*weights[:3], None]}, {"weights": [*weights[:2], None, weights[3]]}, {"h_in": None}]
    for change in [*wrong, {"h": None}, {"c_in": None if has_cell else part}, {"c": None if has_cell else part}]:
        for kernel in (forward, backward):
            with pytest.raises(ValueError, match=r"^kernel argument: expected "):
                kernel(**whole | change)
    for change in ({"h_in": None}, {"c_in": None if has_cell else part}):
        with pytest.raises(ValueError, match=r"^kernel argument: expected "):
            factors(**whole | change)
    with pytest.raises(ValueError, match=r"^kernel argument: expected a tape"):
        backward(**whole | {"gates": None, "h_in": None, "c_in": None})
    for number in (-1, len(_kernels.cells())):
        with pytest.raises(ValueError, match=r"^kernel argument: expected a cell below"):
            _kernels.jacobian_factors(number, H, np.arange(4), (gates, part, c))


@pytest.mark.parametrize("file", sorted((ROOT / "src/recurrent/cells").glob("*.inc.h")), ids=lambda file: file.name)
def test_a_cells_file_names_tests_and_twins_that_exist(file: Path) -> None:
    head = file.read_text().partition("*/")[0]
    named = re.search(r"tests {4,}(.*)", head, re.DOTALL)
    assert named is not None
    found, text = [], ""
    for path, name in re.findall(r"(tests/[\w/]+\.(?:py|c))|\b(test_\w+)(?!\w*\.py)", named[1]):
        if path:
            text = (ROOT / path).read_text()
        else:
            assert re.search(rf"\b{name}\(", text), name
            found.append(name)
    assert {"test_backward_agrees_with_finite_differences", "test_cell", "test_jacobian"} <= set(found)
    twins = re.findall(r"\b_?[a-z]+_[a-z]+\b", head[head.index("gradcore/reference/") : named.start()])
    assert len(twins) == 3
    assert all(hasattr(reference.recurrent, twin) or hasattr(reference.spectral, twin) for twin in twins)


def test_the_table_of_cells_is_that_of_the_formulas() -> None:
    """The weights' gates in PyTorch's order; GRU's new gate takes its two products apart."""
    assert _kernels.cells() == {
        name: dict(zip(("kind", "gates", "kept", "factors", "has_cell", "bypass", "ih", "hh"), row, strict=True))
        for name, row in {
            "RNN_TANH": (_kernels.RNN_TANH, 1, 1, 1, False, False, (0,), (0,)),
            "RNN_RELU": (_kernels.RNN_RELU, 1, 1, 1, False, False, (0,), (0,)),
            "LSTM": (_kernels.LSTM, 4, 4, 6, True, False, (0, 1, 2, 3), (0, 1, 2, 3)),
            "GRU": (_kernels.GRU, 3, 4, 4, False, True, (2, 0, 1, -1), (-1, 0, 1, 2)),
        }.items()
    }


@pytest.mark.parametrize("step_clip", [-1.0, np.nan, -np.inf, "much", [1.0, 2.0]])
def test_a_wrong_step_clip_raises(step_clip: Any) -> None:
    layer = gradcore.GRU(2, 3)
    y, tape = layer.forward(np.ones((6, 4, 2), np.float32))
    with pytest.raises((TypeError, ValueError), match=r"^step_clip: "):
        layer.backward(tape, y, step_clip=step_clip)
    assert not layer.flat_grads.any()


def test_a_tape_of_something_else_raises() -> None:
    layer, larger = gradcore.GRU(2, 3), gradcore.GRU(2, 30)
    _, tape = larger.forward(np.ones((6, 4, 2), np.float32))
    for wrong in (tape, gradcore.LSTM(2, 3).forward(np.ones((6, 4, 2), np.float32))[1], None, "tape"):
        with pytest.raises((TypeError, ValueError), match=r"^tape: "):
            layer.backward(wrong, np.ones((6, 4, 3), np.float32))
    assert not layer.flat_grads.any()


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"input_size": -1}, ValueError),
        ({"input_size": 2.0}, TypeError),
        ({"input_size": True}, TypeError),
        ({"input_size": 2**62}, ValueError),
        ({"hidden_size": -3}, ValueError),
        ({"hidden_size": "3"}, TypeError),
        ({"hidden_size": None}, TypeError),
        ({"num_layers": 0}, ValueError),
        ({"num_layers": -1}, ValueError),
        ({"num_layers": 1.5}, TypeError),
        ({"dropout": -0.1}, ValueError),
        ({"dropout": 1.5}, ValueError),
        ({"dropout": np.nan}, ValueError),
        ({"dropout": "half"}, TypeError),
        ({"dtype": np.float16}, TypeError),
        ({"dtype": np.int64}, TypeError),
        ({"dtype": ">f8"}, TypeError),
        ({"dtype": "nonsense"}, TypeError),
        ({"rng": 3.0}, TypeError),
        ({"nonlinearity": "gelu"}, (TypeError, ValueError)),
        ({"proj_size": 3}, TypeError),
    ],
    ids=str,
)
def test_wrong_constructor_arguments_raise_and_are_named(cell: str, arguments: dict[str, Any], error: Any) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        getattr(gradcore, cell)(**{"input_size": 2, "hidden_size": 3, **arguments})


def test_dtype_is_float32_unless_said_otherwise_and_options_are_keywords() -> None:
    assert gradcore.GRU(2, 3).dtype == np.float32
    assert gradcore.RNN(2, 3).nonlinearity == "tanh"
    for cell in ("RNN", "LSTM", "GRU"):
        with pytest.raises(TypeError, match=rf"^{cell}\.__init__\(\) takes from 3 to 4 positional arguments"):
            getattr(gradcore, cell)(2, 3, 1, False)
        with pytest.raises(TypeError, match=rf"^{cell}\.__init__\(\) got an unexpected keyword argument 'proj_size'"):
            getattr(gradcore, cell)(2, 3, proj_size=1)
    with pytest.raises(TypeError, match=r"^LSTM\.__init__\(\) got .* 'nonlinearity'"):
        gradcore.LSTM(2, 3, nonlinearity="tanh")


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_the_documentation_has_every_argument(cell: str) -> None:
    docscrape = pytest.importorskip("numpydoc.docscrape")
    kind = getattr(gradcore, cell)
    documented = {parameter.name: " ".join(parameter.desc) for parameter in docscrape.ClassDoc(kind)["Parameters"]}
    assert list(documented) == list(inspect.signature(kind).parameters)
    assert all(documented.values())
    text = kind.__doc__.replace('{"tanh", "relu"}', "").partition("Parameters")[2]
    assert "{" not in re.sub(r":math:`[^`]*`|\.\. math::.*", "", text)
    assert "tape.telemetry" in kind.__doc__


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_dropout_without_a_layer_above_warns(cell: str) -> None:
    with pytest.warns(UserWarning, match="dropout: 0.5 has no effect with num_layers=1") as caught:
        layer = getattr(gradcore, cell)(2, 3, dropout=0.5)
    assert caught[0].filename == __file__
    copy.deepcopy(layer)  # which has said so before
    with pytest.raises(TypeError, match="dropout: expected a number"):
        getattr(gradcore, cell)(2, 3, 2, dropout=True)


# ---- the last state alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_no_dy_is_zeros_beside_a_dstate(mode: str, batch_first: bool) -> None:
    case = Case(mode, num_layers=2, bidirectional=True, batch_first=batch_first, lengths=(3, 0, 6, 5))
    layer, batch = case.layer(), case.batch()
    x = batch.x.swapaxes(0, 1) if batch_first else batch.x
    y, tape = layer.forward(x, batch.state, batch.lengths)
    want = [layer.backward(tape, np.zeros_like(y), batch.dstate), layer.flat_grads.copy(), tape.telemetry.dh_norm]
    assert want[1].any()
    layer.zero_grad()
    got = [layer.backward(tape, None, batch.dstate), layer.flat_grads, tape.telemetry.dh_norm]
    assert all(map(same_bits, got, want))
    with pytest.raises(TypeError, match="dy: expected an array, got None; it can be None only with a dstate"):
        layer.backward(tape, None)
    assert same_bits(layer.flat_grads, want[1])


def test_no_dy_for_the_regularizer() -> None:
    layer = gradcore.RNN(3, 4, dtype=np.float64, rng=0)
    y, tape = layer.forward(np.ones((6, 2, 3)))
    dstate = np.random.default_rng(1).standard_normal((1, 2, 4))
    want = gradcore.VanishingGradientRegularizer(1.0)(layer, tape, np.zeros_like(y), dstate)
    grads = layer.flat_grads.copy()
    layer.zero_grad()
    assert gradcore.VanishingGradientRegularizer(1.0)(layer, tape, None, dstate) == want > 0
    assert same_bits(layer.flat_grads, grads)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[[1.0, 2.0]]], "x: expected float32, got float64; convert it with numpy.asarray(x, numpy.float32)"),
        (np.ones((1, 1, 2)), "x: expected float32, got float64; convert it with x.astype(numpy.float32)"),
        (None, "x: expected an array of float32, got NoneType"),
        (gradcore.Tanh(), "x: expected an array of float32, got Tanh"),
    ],
    ids=["list", "array", "None", "layer"],
)
def test_advice_fits_what_came(x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        gradcore.RNN(2, 3)(x)


# ---- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [*VARIANTS, {"bias": False}, {"H": 65, "dtype": np.float32}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_parameters_are_pytorchs_and_views_of_one_buffer(mode: str, variant: dict[str, Any]) -> None:
    case = replace(Case(mode), **variant)
    layer = case.layer()
    shapes = {name: p.shape for name, p in case.params().items()}
    for views, flat in ((layer.params, layer.flat_params), (layer.grads, layer.flat_grads)):
        assert {name: view.shape for name, view in views.items()} == shapes
        assert list(views) == list(shapes)
        assert flat.shape == (sum(view.size for view in views.values()),)
        assert flat.dtype == case.dtype
        assert flat.ctypes.data % 64 == 0
        assert flat.flags.c_contiguous
        flat[...] = np.arange(flat.size)
        seen = np.concatenate([view.ravel() for view in views.values()])
        assert np.array_equal(np.sort(seen), flat)  # each element in just one view
        for view in views.values():
            view[...] = -1
        assert (flat == -1).all()
    assert not np.shares_memory(layer.flat_params, layer.flat_grads)
    layer.zero_grad()
    assert not any(gradient.any() for gradient in layer.grads.values())
    assert (layer.flat_params == -1).all()


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_initial_parameters_follow_the_generator_and_pytorchs_range(cell: str) -> None:
    make = lambda seed: getattr(gradcore, cell)(5, 16, 2, rng=np.random.default_rng(seed))  # noqa: E731
    layer = make(1)
    assert same_bits(layer.flat_params, make(1).flat_params)
    assert not same_bits(layer.flat_params, make(2).flat_params)
    assert np.abs(layer.flat_params).max() <= 0.25  # 1 / sqrt(16)
    for p in layer.params.values():
        assert 0.1 < p.std() < 0.18  # of a uniform distribution: 0.25 / sqrt(3) = 0.144
    assert not layer.flat_grads.any()


def test_state_dict_copies_and_load_state_dict_takes_all_or_nothing() -> None:
    layer = gradcore.LSTM(3, 4, 2, rng=np.random.default_rng(0))
    saved = layer.state_dict()
    before = layer.flat_params.copy()
    for name in saved:
        saved[name] += 1
    assert same_bits(layer.flat_params, before)

    def raises(error: Any, match: str, state_dict: Any) -> None:
        with pytest.raises(error, match=match):
            layer.load_state_dict(state_dict)
        assert same_bits(layer.flat_params, before)

    raises(KeyError, "bias_hh_l1", {name: value for name, value in saved.items() if name != "bias_hh_l1"})
    raises(KeyError, "weight_ih_l2", saved | {"weight_ih_l2": saved["weight_ih_l1"]})
    raises(
        ValueError, r"bias_hh_l1: expected shape \(16,\), got \(15,\)", saved | {"bias_hh_l1": np.zeros(15, np.float32)}
    )
    raises(ValueError, r"weight_hh_l1: expected shape", saved | {"weight_hh_l1": saved["weight_hh_l1"].T})
    raises(TypeError, "bias_hh_l1: expected float32, got float64", saved | {"bias_hh_l1": np.zeros(16)})
    flat = layer.flat_params
    layer.load_state_dict(saved)
    assert layer.flat_params is flat
    assert all(same_bits(layer.params[name], value) for name, value in saved.items())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
def test_a_copied_layer_is_whole_and_independent(copied: Callable[[Any], Any]) -> None:
    case = Case("LSTM", num_layers=2, bidirectional=True)
    layer, batch = case.layer(), case.batch()
    want = run(layer, batch)
    other = copied(layer)
    assert other.flat_params.ctypes.data % 64 == 0
    assert_same_bits(run(other, batch), want)
    other.flat_params *= 0.5  # its views are its own, and still views
    assert same_bits(other.params["weight_hh_l1"], 0.5 * layer.params["weight_hh_l1"])
    layer.zero_grad()
    assert other.grads["weight_hh_l1"].any()
    assert_same_bits(run(layer, batch), want)


# ---- dropout -------------------------------------------------------------------------------------------------------


def passing_on(dropout: float, seed: int) -> Any:
    """Two relu layers that hand positive inputs on unchanged, so that y / x shows what dropout multiplied by."""
    layer = gradcore.RNN(
        40, 40, 2, nonlinearity="relu", dropout=dropout, bias=False, dtype=np.float64, rng=np.random.default_rng(seed)
    )
    for name, p in layer.params.items():
        p[...] = np.eye(40) if name.startswith("weight_ih") else 0
    return layer


@pytest.mark.parametrize("lengths", [None, np.arange(25)], ids=["full", "lengths"])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_zeroes_a_share_of_the_units_and_scales_the_rest(p: float, lengths: Any) -> None:
    x = np.random.default_rng(0).uniform(1, 2, (30, 25, 40))
    alive = np.arange(30)[:, None] < (np.full(25, 30) if lengths is None else lengths)
    layer = passing_on(p, 3)
    y, tape = layer.forward(x, lengths=lengths)
    factors = (y / x)[alive]
    zero = factors == 0
    assert np.allclose(factors[~zero], 1 / (1 - p), rtol=1e-14)
    assert abs(zero.mean() - p) < 5 * np.sqrt(p * (1 - p) / zero.size)  # 5 standard deviations; the seed is fixed
    dx = layer.backward(tape, np.ones_like(x))
    assert np.allclose((y / x)[alive], dx[alive], rtol=1e-14)  # the same mask backwards
    assert not dx[~alive].any()

    again, other = passing_on(p, 3), passing_on(p, 4)
    assert same_bits(again.forward(x, lengths=lengths)[0], y)  # reproducible
    assert not same_bits(again.forward(x, lengths=lengths)[0], y)  # but anew for each call
    assert not same_bits(other.forward(x, lengths=lengths)[0], y)
    assert same_bits(layer(x, lengths=lengths)[0], np.where(alive[..., None], x, 0))  # none in inference


def test_dropout_of_everything_leaves_zeros() -> None:
    x = np.random.default_rng(0).uniform(1, 2, (5, 4, 40))
    layer = passing_on(1.0, 0)
    y, tape = layer.forward(x)
    assert not y.any()
    assert not layer.backward(tape, np.ones_like(x)).any()
    assert same_bits(layer(x)[0], x)


@pytest.mark.parametrize("infinite", [False, True], ids=["overflow", "infinite"])
def test_dropout_of_what_is_too_large_is_silent(infinite: bool) -> None:
    layer, large = passing_on(0.5, 3), np.finfo(np.float64).max
    if infinite:  # before dropout, which makes NaN of what it drops
        layer.params["weight_ih_l0"][...] = layer.params["weight_ih_l1"][...] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, tape = layer.forward(np.full((2, 4, 40), large))
        dx = layer.backward(tape, np.full_like(y, large))
    assert not np.isfinite(y).any(where=y != 0)
    assert not np.isfinite(dx).any(where=dx != 0)


def test_dropout_needs_a_layer_above() -> None:
    case = Case("GRU", bidirectional=True, options={"dropout": 0.5})
    batch = case.batch()
    with pytest.warns(UserWarning, match="dropout: 0.5 has no effect"):
        layer = case.layer()
    assert_same_bits(run(layer, batch), run(Case("GRU", bidirectional=True).layer(), batch))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_through_dropout_agree_with_finite_differences(mode: str) -> None:
    case = Case(mode, H=4, I=2, B=3, T=4, num_layers=3, bidirectional=True, lengths=(4, 0, 3))
    batch, params = case.batch(), case.params()

    def forward() -> Any:
        layer = replace(case, options={"dropout": 0.4, "rng": np.random.default_rng(7)}).layer()  # the same masks
        layer.load_state_dict(params)
        return layer, *layer.forward(batch.x, batch.state, batch.lengths)

    def loss() -> float:
        return float(np.vdot(forward()[1], batch.dy))

    layer, _, tape = forward()
    dx = layer.backward(tape, batch.dy)
    assert relative_error(dx, central_difference(loss, batch.x)) < 1e-6
    for name in ("weight_ih_l0", "weight_hh_l1_reverse", "weight_ih_l2"):
        part = params[name][:2]
        assert relative_error(layer.grads[name][:2], central_difference(loss, part)) < 1e-6, name


def test_telemetry_says_what_it_is_of() -> None:
    layer = gradcore.GRU(3, 4, 2, bidirectional=True, rng=np.random.default_rng(0))
    y, tape = layer.forward(np.ones((7, 2, 3), np.float32))
    dy = np.ones_like(y)
    layer.backward(tape, dy)
    assert tape.telemetry.num_directions == 2
    assert repr(tape.telemetry) == "<Telemetry: L=2, D=2, T=7, all finite>"
    dy[5] = np.nan
    layer.backward(tape, dy)
    assert repr(tape.telemetry) == "<Telemetry: L=2, D=2, T=7, not finite from (1, 0, 5) on>"
