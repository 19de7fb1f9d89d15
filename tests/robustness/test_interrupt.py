"""Ctrl-C: long kernels answer it half way, and what it leaves is whole."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
from conftest import LONG

import gradcore
from gradcore import _kernels
from gradcore._base.memory import aligned_zeros

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")


class Heard(BaseException):
    pass


@contextmanager
def signals(handler: Callable[[], None], after: float, every: float = 0.0) -> Iterator[None]:
    """A signal comes after so many seconds, and again and again if there is an interval."""

    def handle(signum: int, frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, after, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raise_when_called(times: int) -> Callable[[], None]:
    """A handler that raises when it is called for the last of so many times.

    Python calls a handler once for all signals that came during a kernel which does not ask. So whatever is left by the
    second call was left half way.
    """
    calls = 0

    def handler() -> None:
        nonlocal calls
        calls += 1
        if calls == times:
            raise Heard

    return handler


@pytest.fixture(params=[1, 2] if LONG else [2])
def num_threads(request: Any) -> Iterator[None]:
    before = gradcore.get_num_threads()
    gradcore.set_num_threads(request.param)
    yield
    gradcore.set_num_threads(before)


def recurrent(kind: str, T: int, ragged: bool = False) -> Callable[[], Any]:
    layer = getattr(gradcore, kind)(8, 512, rng=np.random.default_rng(0))
    x, lengths = np.ones((T, 32, 8), np.float32), np.arange(1, 33) * T // 32 if ragged else None
    return lambda: layer(x, lengths=lengths)[0]


def backward(times: int) -> Callable[[], Any]:
    """Of few sequences: threads share the units, and wait for each other at every step."""
    layer = gradcore.LSTM(8, 512, rng=np.random.default_rng(0))
    y, tape = layer.forward(np.ones((250 * times, 8, 8), np.float32))
    return lambda: layer.backward(tape, y)


def many_small_steps(times: int) -> Callable[[], Any]:
    layer = gradcore.LSTM(1, 8, dtype=np.float64, rng=np.random.default_rng(0))
    x = np.ones((1_000_000 * times, 1, 1))
    return lambda: layer(x)[1][0]


def linear(times: int) -> Callable[[], Any]:
    layer = gradcore.Linear(2048, 2048, dtype=np.float64, rng=np.random.default_rng(0))
    x = np.ones((4096 * times, 2048))
    return lambda: layer(x)


def attention(times: int) -> Callable[[], Any]:
    layer = gradcore.MultiheadAttention(64, 2, dtype=np.float64, rng=np.random.default_rng(0))
    x = np.ones((4096, times, 64))
    return lambda: layer(x)


def activation(times: int) -> Callable[[], Any]:
    x = np.full(20_000_000 * times, 0.5)
    return lambda: _kernels.activation_forward(_kernels.SOFTPLUS, 1.0, 20.0, x, x)


def prelu(times: int) -> Callable[[], Any]:
    x, w = np.ones(60_000_000 * times, np.float32), np.ones(1, np.float32)
    return lambda: _kernels.prelu_forward(x, w, x)


def dropout(times: int) -> Callable[[], Any]:
    x = np.ones(60_000_000 * times, np.float32)
    return lambda: _kernels.dropout(0.5, 1, x, x)


def embedding(times: int) -> Callable[[], Any]:
    layer = gradcore.Embedding(2, 512, rng=0)
    y, tape = layer.forward(np.zeros(30_000 * times, np.uint8))

    def call() -> Any:
        layer.backward(tape, y)
        found = layer.flat_grads.copy()
        layer.zero_grad()
        return found

    return call


def mean(times: int) -> Callable[[], Any]:
    x = np.ones((60_000_000 * times, 1, 1), np.float32)
    return lambda: gradcore.MeanPool()(x)


def norm(times: int) -> Callable[[], Any]:
    g = np.ones(20_000_000 * times, np.float32)
    return lambda: float(gradcore.grad_norm([g], norm_type=2.5))


def rows(times: int) -> Callable[[], Any]:
    n = 10_000 * times
    two, first, second = np.ones((2, 1 << 18), np.float32), np.zeros(n, np.intp), np.ones(n, np.intp)
    return lambda: _kernels.copy_rows(two, first, two, second)


def jacobian(times: int) -> Callable[[], Any]:
    H, take = 256, lambda n: aligned_zeros(n, np.dtype(np.uint8))
    factors, v = np.full((1000 * times, 1, 6, H), 0.1), np.ones((1, 64, 2 * H))
    packed = _kernels.jacobian_packed(_kernels.LSTM, False, np.zeros((4 * H, H)), take)
    return lambda: _kernels.jacobian_product(_kernels.LSTM, False, factors, packed, v, None, take)


def separation(times: int) -> Callable[[], Any]:
    v = np.random.default_rng(0).standard_normal((times, 1200, 1200))
    return lambda: _kernels.jacobian_separate(v, True)


# What makes a call of about a fifth of a second, or so many times as long, which returns something to compare.
CALLS: dict[str, Callable[[int], Callable[[], Any]]] = {
    "RNN": lambda times: recurrent("RNN", 3000 * times),
    "LSTM": lambda times: recurrent("LSTM", 800 * times),
    "GRU": lambda times: recurrent("GRU", 1000 * times),
    "ragged": lambda times: recurrent("LSTM", 1600 * times, ragged=True),
    "backward": backward,
    "small": many_small_steps,
    "linear": linear,
    "attention": attention,
    "activation": activation,
    "prelu": prelu,
    "dropout": dropout,
    "embedding": embedding,
    "mean": mean,
    "norm": norm,
    "rows": rows,
    "jacobian": jacobian,
    "separation": separation,
}


TIMES = (1, 2, 4, 8, 16, 32)  # the last is long enough for any machine


def break_off(make: Callable[[int], Callable[[], Any]]) -> None:
    """Have Heard raised in the middle of a call, by the second signal that it hears.

    A call that hears fewer was too short for this machine, or deaf: the next one takes twice as long.
    """
    for times in TIMES:
        call = make(times)
        with signals(raise_when_called(2), 0.05, 0.05):
            call()


@pytest.mark.parametrize("name", CALLS)
def test_a_long_kernel_hears_signals_half_way(name: str, num_threads: None) -> None:
    with pytest.raises(Heard):
        break_off(CALLS[name])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["LSTM", "norm"])
def test_a_child_hears_them_whichever_thread_has_forked_it(name: str) -> None:
    statuses = []

    def in_child() -> None:
        status = 1
        try:
            break_off(CALLS[name])
        except Heard:
            status = 0
        finally:
            os._exit(status)

    def fork() -> None:
        child = os.fork()
        if child == 0:
            in_child()
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    fork()
    other = threading.Thread(target=fork)
    other.start()
    other.join()
    assert statuses == [0, 0]


@pytest.mark.parametrize("name", ["ragged", "norm"])
def test_a_handler_that_does_not_raise_changes_nothing(name: str, num_threads: None) -> None:
    """Not even if it uses gradcore itself; and it runs in Python's own floating-point mode."""
    small = gradcore.GRU(3, 40, rng=np.random.default_rng(0))
    x = np.ones((50, 4, 3), np.float32)
    want, inside = small(x)[0], []

    def handler() -> None:
        inside.append(np.array_equal(small(x)[0], want) and sys.float_info.min / 4 > 0)

    for times in TIMES:
        inside.clear()
        call = CALLS[name](times)
        once = call()
        with signals(handler, 0.05, 0.05):
            again = call()
        np.testing.assert_array_equal(again, once)
        assert all(inside)
        if len(inside) > 1:  # the last may have come when the call had ended
            break
    assert len(inside) > 1


# And the shape of x, as wide as the model is. Layers at the speed of memory would need more of it than there is.
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "LSTM": (lambda: gradcore.LSTM(8, 512, rng=np.random.default_rng(0)), (200, 32, 8)),
    "stack": (lambda: gradcore.GRU(8, 256, 2, bidirectional=True, rng=np.random.default_rng(0)), (100, 32, 8)),
    "linear": (lambda: gradcore.Linear(2048, 2048, rng=np.random.default_rng(0)), (2048, 2048)),
    "attention": (lambda: gradcore.MultiheadAttention(64, 2, rng=np.random.default_rng(0)), (2048, 2, 64)),
    "Sequential": (lambda: gradcore.Sequential(gradcore.LSTM(8, 512), gradcore.Linear(512, 4)), (200, 32, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_backward_broken_off_leaves_zero_gradients_and_a_layer_that_works(name: str, num_threads: None) -> None:
    build, (length, *others) = MODELS[name]
    made: list[Any] = []

    def make(times: int) -> Callable[[], Any]:
        model = build()
        y, tape = model.forward(np.ones((length * times, *others), np.float32))
        dy = np.full_like(y, 1e-3)
        model.backward(tape, dy)
        made[:] = model, model.flat_grads.copy(), model.flat_params.copy(), lambda: model.backward(tape, dy)
        return made[-1]

    with pytest.raises(Heard):
        break_off(make)
    model, want, params, backward = made
    assert not model.flat_grads.any()
    np.testing.assert_array_equal(model.flat_params, params)
    backward()
    np.testing.assert_array_equal(model.flat_grads, want)


def test_the_regularizer_broken_off_leaves_zero_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = gradcore.RNN(2, 3, bidirectional=True)
    y, tape = rnn.forward(np.ones((4, 1, 2), np.float32))
    rnn.backward(tape, np.ones_like(y))
    regularizer = gradcore.VanishingGradientRegularizer(1.0)

    def half_way(arrays: Any, name: str) -> Any:
        if arrays is rnn.grads and name == "weight_hh_l0_reverse":
            raise KeyboardInterrupt
        return dict.__getitem__(arrays, name)

    monkeypatch.setattr(type(rnn.grads), "__getitem__", half_way, raising=False)
    with pytest.raises(KeyboardInterrupt):
        regularizer(rnn, tape, np.ones_like(y))
    assert not rnn.flat_grads.any()


@pytest.mark.parametrize("rule", ["SGD", "NAdam", "SPAM"])
def test_a_step_is_taken_whole_or_not_at_all(rule: str) -> None:
    """Two groups, one array of which is not contiguous; the signal comes at any moment."""
    grads = [np.ones(50_000), np.ones((300, 300))[::2, ::2]]
    params = [np.zeros(50_000), np.zeros((300, 300))[::2, ::2]]
    groups = [{"params": [pair]} for pair in zip(params, grads, strict=True)]
    optimizer = getattr(gradcore.optim, rule)(groups, lr=1.0, **({"reset_every": 3} if rule == "SPAM" else {}))
    draw, heard = random.Random(0), 0
    for _ in range(300):
        before = optimizer.state_dict(), [p.copy() for p in params]
        other = gradcore.optim.__dict__[rule](
            [{"params": [(p.copy(), g)]} for p, g in zip(params, grads, strict=True)],
            lr=1.0,
            **({"reset_every": 3} if rule == "SPAM" else {}),
        )
        other.load_state_dict(before[0])
        other.step()
        try:
            with signals(raise_when_called(1), draw.uniform(1e-5, 4e-4)):
                optimizer.step()
        except Heard:
            heard += 1
        whole = optimizer.n_steps > before[0]["n_steps"]
        for p, old, new in zip(params, before[1], other.params.values(), strict=True):
            np.testing.assert_array_equal(p, new if whole else old)
        np.testing.assert_equal(optimizer.state_dict(), other.state_dict() if whole else before[0])
    assert heard


def test_clipping_is_whole_or_not_at_all() -> None:
    big = np.ones((600, 600))
    grads, draw, heard = [big[::2, ::2], np.ones(90_000)], random.Random(0), 0
    for _ in range(300):
        for g in grads:
            g[...] = 1
        try:
            with signals(raise_when_called(1), draw.uniform(1e-5, 1e-3)):
                gradcore.clip_grad_norm_(grads, 1.0)
        except Heard:
            heard += 1
        assert {float(g.min()) for g in grads} == {float(g.max()) for g in grads}
        assert len({float(g.max()) for g in grads}) == 1
    assert heard


def problem(where: str | None, step: int = 3) -> tuple[gradcore.History, Any, Any, list[Any]]:
    """A run of six steps, in one of which Ctrl-C comes somewhere: history, model, optimizer, each step's state."""
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.LSTM(2, 12, 2, dropout=0.5, dtype=np.float64, rng=rng),
        gradcore.Linear(12, 1, dtype=np.float64, rng=rng),
    )
    optimizer = gradcore.optim.Adam(model, lr=0.01)
    x = rng.standard_normal((7, 4, 2))
    states: list[Any] = []

    def state() -> Any:
        drawn = [generator.bit_generator.state for generator in model.generators()]
        return model.flat_params.copy(), optimizer.state_dict(), drawn

    def at(place: str) -> None:
        if place == where and len(states) == step:
            os.kill(os.getpid(), signal.SIGINT)

    def batches() -> Iterator[Any]:
        for _ in range(6):
            at("batch")
            yield x, x[:, :, :1]

    def loss(y: Any, target: Any) -> Any:
        at("loss")
        return gradcore.losses.mse(y, target)

    def callback(record: gradcore.TrainingStep) -> None:
        at("callback")
        states.append(state())

    places = ("before_forward", "after_loss", "after_backward", "before_step", "after_step")
    hook = type("CtrlC", (gradcore.Hook,), {place: lambda self, step, place=place: at(place) for place in places})()
    history = gradcore.fit(model, batches, loss, optimizer, epochs=1, hooks=[hook], callbacks=[callback])
    states.append(state())
    return history, model, optimizer, states


@pytest.mark.parametrize("where", ["batch", "before_forward", "loss", "after_loss", "after_backward", "before_step"])
def test_fit_drops_the_step_that_was_under_way(where: str, ctrl_c: None) -> None:
    whole, *_, states = problem(None)
    history, model, optimizer, seen = problem(where)
    assert history.interrupted
    assert len(history) == optimizer.n_steps == 3
    np.testing.assert_array_equal(history.loss, whole.loss[:3])
    np.testing.assert_equal(seen[-1], states[2])
    assert not model.flat_grads.any()


@pytest.mark.parametrize("where", ["after_step", "callback"])
def test_fit_finishes_what_follows_the_update(where: str, ctrl_c: None) -> None:
    *_, states = problem(None)
    history, _, optimizer, seen = problem(where)
    assert history.interrupted
    assert len(history) == optimizer.n_steps == 4
    np.testing.assert_equal(seen[-1], states[3])


def test_fit_breaks_off_a_long_kernel(ctrl_c: None) -> None:
    for times in TIMES:
        model = gradcore.LSTM(8, 512, rng=np.random.default_rng(0))
        params, optimizer = model.flat_params.copy(), gradcore.optim.SGD(model, lr=1.0)
        x, calls = np.ones((800 * times, 32, 8), np.float32), []
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))

        def batches() -> Iterator[Any]:
            timer.start()  # noqa: B023
            yield x, None  # noqa: B023

        def loss(y: Any, target: Any) -> Any:
            calls.append(1)  # noqa: B023
            timer.join()  # noqa: B023
            return 0.0, np.ones_like(y)

        history = gradcore.fit(model, batches, loss, optimizer, epochs=1)
        timer.join()
        assert history.interrupted
        assert len(history) == optimizer.n_steps == 0
        np.testing.assert_array_equal(model.flat_params, params)
        if not calls:
            break
    assert not calls  # the forward pass was not finished


def test_an_interrupt_that_is_not_ctrl_c_is_not_swallowed(ctrl_c: None) -> None:
    model = gradcore.Linear(1, 1)

    def loss(y: Any, target: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradcore.fit(model, [(np.ones((1, 1), np.float32), None)], loss, gradcore.optim.SGD(model, lr=1.0), epochs=1)
