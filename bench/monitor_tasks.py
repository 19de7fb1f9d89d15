"""The tasks of `monitor.py`: small models that learn what they are given in a few hundred steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gradcore
from gradcore import losses, optim

Array = np.ndarray[Any, Any]
Rng = np.random.Generator
Loss = Callable[[Array, Any], tuple[float, Array]]


@dataclass
class Task:
    """A model, its data and how it is trained."""

    name: str
    model: Callable[[Rng], Any]
    batch: Callable[[Rng], tuple[Any, ...]]
    loss: Loss
    optimizer: Callable[[Any, float], Any]
    lr: float
    steps: int = 300
    max_norm: float | None = None
    hooks: Callable[[], list[gradcore.Hook]] = list
    clean_loss: Loss | None = None  # where the loss of the training says nothing of the model
    batches: Callable[[Rng, int], list[tuple[Any, ...]]] | None = None  # where they follow each other
    tags: frozenset[str] = field(default_factory=frozenset)


def chain(*layers: Any) -> Any:
    return gradcore.Sequential(*layers)


def last(cell: str, inputs: int, hidden: int, outputs: int, layers: int = 1, **options: Any) -> Callable[[Rng], Any]:
    """A recurrent layer whose last output is mapped to the answer."""

    def build(rng: Rng) -> Any:
        recurrent = getattr(gradcore, cell)(inputs, hidden, layers, rng=rng, **options)
        width = hidden * (2 if options.get("bidirectional") else 1)
        return chain(recurrent, gradcore.LastStep(), gradcore.Linear(width, outputs, rng=rng))

    return build


def every(cell: str, inputs: int, hidden: int, outputs: int, **options: Any) -> Callable[[Rng], Any]:
    """A recurrent layer with an answer at every step."""

    def build(rng: Rng) -> Any:
        width = hidden * (2 if options.get("bidirectional") else 1)
        layer = getattr(gradcore, cell)(inputs, hidden, rng=rng, **options)
        return chain(layer, gradcore.Linear(width, outputs, rng=rng))

    return build


def mlp(sizes: Sequence[int], activation: str = "relu", init: str = "kaiming_normal") -> Callable[[Rng], Any]:
    return lambda rng: gradcore.MLP(list(sizes), activation=activation, init=init, rng=rng)


def float32(*arrays: Array) -> tuple[Array, ...]:
    return tuple(np.ascontiguousarray(array, np.float32) for array in arrays)


# ---- data ------------------------------------------------------------------------------------------------------------


def recall(steps: int, batch: int = 16) -> Callable[[Rng], tuple[Any, ...]]:
    def draw(rng: Rng) -> tuple[Any, ...]:
        x = rng.standard_normal((steps, batch, 2))
        return float32(x, x[0, :, :1])

    return draw


def adding(rng: Rng) -> tuple[Any, ...]:
    x = np.stack([rng.random((12, 32)), np.zeros((12, 32))], axis=2)
    marks = np.stack([rng.integers(0, 6, 32), rng.integers(6, 12, 32)])
    x[marks, np.arange(32), 1] = 1
    return float32(x, (x[..., 0] * x[..., 1]).sum(axis=0)[:, None])


def runoff(rng: Rng) -> tuple[Any, ...]:
    """Rain with heavy tails, of which a reservoir lets out a part."""
    rain = rng.exponential(1, (20, 16, 1)) * (rng.random((20, 16, 1)) < 0.3) * np.exp(0.5 * rng.standard_normal())
    weights = 0.7 ** np.arange(20)[::-1]
    return float32(rain, np.tensordot(weights, rain, (0, 0)))


def surface(noise: float) -> Callable[[Rng], tuple[Any, ...]]:
    def draw(rng: Rng) -> tuple[Any, ...]:
        x = rng.standard_normal((32, 4))
        return float32(x, np.sin(x.sum(axis=1, keepdims=True)) + noise * rng.standard_t(2.5, (32, 1)))

    return draw


def planes(rng: Rng) -> tuple[Any, ...]:
    x = rng.standard_normal((32, 8)).astype(np.float32)
    return x, np.argmax(x[:, :5] + 0.5 * x[:, 3:8], axis=1)


def ragged(rng: Rng) -> tuple[Any, ...]:
    lengths = rng.integers(3, 16, 16)
    x = rng.standard_normal((15, 16, 3)).astype(np.float32)
    kind = rng.integers(0, 3, 16)
    x[:, np.arange(16), kind] += 1.0
    return x, kind, lengths


def tags(rng: Rng) -> tuple[Any, ...]:
    x = rng.standard_normal((12, 16, 3)).astype(np.float32)
    return x, ((np.roll(x[..., 0], 1, 0) + np.roll(x[..., 0], -1, 0)) > 0).astype(np.int64)


def text(n_symbols: int = 10, steps: int = 20) -> Callable[[Rng], tuple[Any, ...]]:
    """A Markov chain, as one-hot vectors."""
    table = np.cumsum(np.random.default_rng(5).dirichlet(np.full(n_symbols, 0.15), n_symbols), axis=1)

    def draw(rng: Rng) -> tuple[Any, ...]:
        ids = np.empty((steps + 1, 16), np.int64)
        ids[0] = rng.integers(0, n_symbols, 16)
        for t in range(steps):
            ids[t + 1] = np.minimum((table[ids[t]] < rng.random((16, 1))).sum(axis=1), n_symbols - 1)
        return np.eye(n_symbols, dtype=np.float32)[ids[:-1]], ids[1:]

    return draw


def names(rng: Rng) -> tuple[Any, ...]:
    """One word of a language, of which there are four."""
    language, letters = rng.integers(4), np.arange(26)
    p = np.exp(1.2 * np.sin(letters * (language + 1) * 0.7))
    word = rng.choice(26, rng.integers(3, 19), p=p / p.sum())
    return np.eye(26, dtype=np.float32)[word][:, None], np.array([language])


def rare(rng: Rng) -> tuple[Any, ...]:
    x = rng.standard_normal((10, 32, 2)).astype(np.float32)
    return x, (x[..., 0].mean(axis=0) > 0.5)[:, None].astype(np.float32)


def wave(rng: Rng) -> tuple[Any, ...]:
    t = np.arange(25)[:, None, None] + rng.uniform(0, 50, (1, 16, 1))
    series = np.sin(0.4 * t) + 0.1 * rng.standard_normal((25, 16, 1))
    return float32(series[:-1], series[1:])


def states(rng: Rng) -> tuple[Any, ...]:
    """Contexts of a bandit with three arms, and the reward of each."""
    x = rng.standard_normal((32, 4)).astype(np.float32)
    return x, x[:, :3] + 0.3 * rng.standard_normal((32, 3)).astype(np.float32)


# ---- losses ----------------------------------------------------------------------------------------------------------


class Reinforce:
    """The loss of a policy gradient: minus reward above a moving mean, times log probability."""

    def __init__(self) -> None:
        self.rng, self.mean = np.random.default_rng(3), 0.0

    def __call__(self, y: Array, rewards: Array) -> tuple[float, Array]:
        p = softmax(y)
        rows = np.arange(len(p))
        actions = (np.cumsum(p, axis=1) < self.rng.random((len(p), 1))).sum(axis=1).clip(max=2)
        advantage = rewards[rows, actions] - self.mean
        self.mean += 0.05 * float(advantage.mean())
        dy = p * advantage[:, None]
        dy[rows, actions] -= advantage
        return float(-(advantage * np.log(p[rows, actions])).mean()), (dy / len(p)).astype(y.dtype)


def softmax(y: Array) -> Array:
    p = np.exp(y.astype(np.float64) - y.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def missed_reward(y: Array, rewards: Array) -> tuple[float, Array]:
    return float((rewards.max(axis=1) - (softmax(y) * rewards).sum(axis=1)).mean()), y


def gaussian(y: Array, target: Array) -> tuple[float, Array]:
    """Minus the log of a normal density without its constant: mean and log deviation, so that it may be negative."""
    mean, log_std = y[:, :1].astype(np.float64), y[:, 1:].astype(np.float64)
    z = (target - mean) * np.exp(-log_std)
    dy = np.concatenate([-z * np.exp(-log_std), 1 - z * z], axis=1) / len(y)
    return float((0.5 * z * z + log_std).mean()), dy.astype(y.dtype)


def hundredfold(y: Array, target: Array) -> tuple[float, Array]:
    """A loss whose gradient overflows under the first scales."""
    loss, dy = losses.mse(y, target)
    return 100 * loss, 100 * dy


class Carry(gradcore.Hook):
    """Start each batch from the state at which the one before ended."""

    state: Any = None

    def before_forward(self, step: Any) -> None:
        step.options["state"] = step.model.initial_state(step.x.shape[1]) if self.state is None else self.state

    def after_backward(self, step: Any) -> None:
        self.state = tuple(np.array(each) if isinstance(each, np.ndarray) else each for each in step.tape.state)


class Block(gradcore.Composite):
    """x + f(x)."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner=inner)

    def __call__(self, x: Array) -> Array:
        return np.asarray(x + self.inner(x))

    def forward(self, x: Array) -> Any:
        y, tape = self.inner.forward(x)
        return x + y, gradcore.Tape(self, y.shape, tapes=[tape])

    def backward(self, tape: Any, dy: Array) -> Any:
        return dy + self.inner.backward(tape.tapes[0], dy)


def residual(rng: Rng) -> Any:
    blocks = [Block(mlp([16, 16, 16])(rng)) for _ in range(4)]
    return chain(gradcore.Linear(4, 16, rng=rng), *blocks, gradcore.Linear(16, 1, rng=rng))


def sgd(momentum: float = 0.0) -> Callable[[Any, float], Any]:
    return lambda model, lr: optim.SGD(model, lr=lr, momentum=momentum)


def full_batch(draw: Callable[[Rng], tuple[Any, ...]]) -> Callable[[Rng, int], list[tuple[Any, ...]]]:
    return lambda rng, n: [draw(rng)] * n


CE, MSE, BCE = losses.softmax_cross_entropy, losses.mse, losses.binary_cross_entropy

TASKS = [
    Task("memory RNN", last("RNN", 2, 24, 1), recall(8), MSE, sgd(), 0.05, max_norm=1.0),
    Task("text LSTM", every("LSTM", 10, 24, 10), text(), CE, optim.Adam, 1e-2, max_norm=1.0),
    Task("ragged GRU", last("GRU", 3, 16, 3), ragged, CE, optim.Adam, 5e-3),
    Task("surface MLP", mlp([4, 32, 32, 1]), surface(0.0), MSE, optim.Adam, 3e-3),
    Task("runoff GRU", last("GRU", 1, 16, 1), runoff, MSE, optim.Adam, 5e-3, max_norm=1.0),
    Task("planes MLP", mlp([8, 32, 5]), planes, CE, sgd(0.9), 0.05),
    Task("adding LSTM", last("LSTM", 2, 24, 1), adding, MSE, optim.Adam, 1e-2, max_norm=1.0),
    Task("tags bidirectional LSTM", every("LSTM", 3, 12, 2, bidirectional=True), tags, CE, optim.Adam, 1e-2),
    Task("stateful text GRU", every("GRU", 10, 24, 10), text(), CE, optim.Adam, 1e-2, hooks=lambda: [Carry()]),
    Task("heavy tails MLP", mlp([4, 32, 1], "tanh", "xavier_normal"), surface(0.5), MSE, optim.Adam, 1e-2, 600),
    Task("names RNN, one at a time", last("RNN", 26, 32, 4), names, CE, sgd(), 0.01, 2000),
    Task(
        "policy gradient MLP", mlp([4, 16, 3]), states, Reinforce(), optim.Adam, 1e-2, 500,
        clean_loss=missed_reward,
    ),
    Task("rare class GRU", last("GRU", 2, 16, 1), rare, BCE, optim.Adam, 1e-2),
    Task("residual MLP", residual, surface(0.0), MSE, optim.AdamW, 3e-3),
    Task("memory GRU, RMSprop", last("GRU", 2, 16, 1), recall(8), MSE, optim.RMSprop, 3e-3),
    Task("surface MLP, Adagrad", mlp([4, 32, 1]), surface(0.0), MSE, optim.Adagrad, 0.05),
    Task(
        "memory LSTM, GradScaler", last("LSTM", 2, 16, 1), recall(6), hundredfold, optim.Adam, 1e-2,
        hooks=lambda: [gradcore.GradScaler(init_scale=2.0**127)],
    ),
    Task("wave LSTM", every("LSTM", 1, 16, 1), wave, MSE, sgd(0.9), 0.05, max_norm=5.0),
]  # fmt: skip
SABOTAGED = ["memory RNN", "text LSTM", "ragged GRU", "surface MLP", "runoff GRU"]


# ---- held out: nobody tunes on these ---------------------------------------------------------------------------------


def majority(rng: Rng) -> tuple[Any, ...]:
    bits = rng.integers(0, 2, (15, 32, 1))
    return float32(2 * bits - 1)[0], (bits.sum(axis=0)[:, 0] > 7).astype(np.int64)


def counting(rng: Rng) -> tuple[Any, ...]:
    lengths = rng.integers(4, 20, 24)
    x = (rng.random((19, 24, 1)) < 0.4).astype(np.float32)
    x *= np.arange(19)[:, None, None] < lengths[None, :, None]
    return x, x.sum(axis=0) / 5, lengths


def spread(rng: Rng) -> tuple[Any, ...]:
    x = rng.uniform(-1, 1, (64, 2))
    return float32(x, 0.3 * x[:, :1] + 0.05 * rng.standard_normal((64, 1)))


def several_labels(rng: Rng) -> tuple[Any, ...]:
    x = rng.standard_normal((24, 6))
    return float32(x, np.stack([x[:, 0] > 0, x[:, 1] * x[:, 2] > 0, x[:, 3:].sum(axis=1) > 0], axis=1))


def one_point(rng: Rng) -> tuple[Any, ...]:
    x = rng.standard_normal((1, 3))
    return float32(x, x[:, :1] - 2 * x[:, 1:2] + 0.3 * rng.standard_normal((1, 1)))


def first_symbol(rng: Rng) -> tuple[Any, ...]:
    ids = rng.integers(0, 5, (10, 24))
    return np.eye(5, dtype=np.float32)[ids], ids[0]


def last_everywhere(rng: Rng) -> tuple[Any, ...]:
    ids = rng.integers(0, 5, (10, 24))
    return np.eye(5, dtype=np.float32)[ids], np.tile(ids[-1], (10, 1))


def damped(rng: Rng) -> tuple[Any, ...]:
    t = np.arange(30)[:, None, None]
    series = np.exp(-0.03 * t) * np.cos(0.5 * t + rng.uniform(0, 6, (1, 12, 1)))
    return float32(series[:-1], series[1:])


HELD_OUT = [
    Task("majority relu RNN", last("RNN", 1, 16, 2, nonlinearity="relu"), majority, CE, sgd(0.9), 0.01, max_norm=1.0),
    Task("counting LSTM", last("LSTM", 1, 20, 1), counting, MSE, optim.RMSprop, 3e-3),
    Task("first symbol GRU, two layers", last("GRU", 5, 20, 5, layers=2), first_symbol, CE, optim.Adam, 1e-2, 400),
    Task("several labels MLP", mlp([6, 48, 3], "elu"), several_labels, BCE, optim.AdamW, 5e-3, max_norm=0.5),
    Task("damped wave GRU", every("GRU", 1, 12, 1), damped, MSE, optim.Adam, 5e-3),
    Task("density MLP", mlp([2, 16, 2], "tanh", "xavier_normal"), spread, gaussian, optim.Adam, 1e-2, 500),
    Task("one point MLP", mlp([3, 16, 1]), one_point, MSE, sgd(), 0.01, 1500),
    Task(
        "last symbol everywhere, bidirectional GRU", every("GRU", 5, 16, 5, bidirectional=True), last_everywhere, CE,
        optim.Adam, 1e-2, max_norm=2.0,
    ),
    Task(
        "planes MLP, one batch", mlp([8, 32, 5], "gelu"), planes, CE, sgd(), 0.3, batches=full_batch(planes),
        hooks=lambda: [gradcore.AdaptiveClip()],
    ),
]  # fmt: skip
HELD_OUT_SABOTAGED = [
    "majority relu RNN",
    "counting LSTM",
    "first symbol GRU, two layers",
    "several labels MLP",
    "damped wave GRU",
]
