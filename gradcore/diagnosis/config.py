"""What the command line is asked to diagnose, and the problem that this poses."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from gradcore._base.check import check_choice, check_int, check_number
from gradcore.data import SourceError, Task
from gradcore.diagnosis.problem import Problem
from gradcore.diagnosis.recipe import Call, ForEachGate, InFile, Known, Let, Name, Recipe, SetRows, Step, call
from gradcore.layers.cell import BY_NAME

__all__ = [
    "INITS", "OPTIMIZERS", "SUNSPOTS", "Config", "configure", "own_builder", "program", "split_model", "task_of",
]  # fmt: skip

INITS = ("default", "normal", "orthogonal", "eye")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "adagrad": "Adagrad"}

# The default of `sunspots` is to show an explosion. All else starts as its layers do by default.
SUNSPOTS: dict[str, Any] = {"init": "normal", "gain": 1.8}

# What `gradcore.data.load` is given.
LOADED = (
    "seq_len", "target", "inputs", "time", "group", "missing", "na", "delimiter", "decimal", "encoding", "horizon",
    "period",
)  # fmt: skip

LARGEST_GAIN = 1e30  # float32 also has to hold weights of the gains that are tried around it


@dataclass(frozen=True)
class Config:
    """What to diagnose. `configure` makes one with the defaults that suit the source.

    Parameters
    ----------
    source : str
        What to learn, as `gradcore.data.load` takes it.
    target : str or int, optional
        Column of a table to forecast.
    cell : {"rnn", "lstm", "gru"}
        Kind of recurrent layer.
    hidden : int
        Number of units H.
    layers : int
        Number of recurrent layers.
    init : {"default", "normal", "orthogonal", "eye"}
        How recurrent matrices start: U(±1/√H), N(0, 1/H), random orthogonal or identity.
    gain : float
        Factor on the recurrent matrices.
    seq_len : int, optional
        Number of steps of a sequence; by default what suits the source.
    batch : int
        Number of sequences in a batch.
    steps : int
        Number of training steps.
    lr : float
        Learning rate.
    optimizer : {"sgd", "adam", "adamw", "rmsprop", "adagrad"}
        Rule of the update.
    seed : int
        Seed of weights and batches.
    seeds : int
        Number of seeds from that on that each trial starts from.
    gate_bias : float, optional
        Bias of the gate that keeps the state, for LSTM and GRU; by default the layer's own.
    model : str, optional
        A model of one's own in place of all options of the layers: ``FILE.py:NAME``, where ``NAME(task, rng)`` returns
        a new model of the task, started from the generator.
    inputs : tuple of str or int, optional
        Columns to forecast from.
    time, group : str or int, optional
        Column to sort by, and column that tells apart several series.
    missing : {"skip", "error", "interpolate"}
        What to do where a value is missing.
    na : tuple of str
        More marks of a missing value.
    delimiter, decimal, encoding : str, optional
        How a text table is written.
    horizon : int, optional
        How many steps after its window the target lies.
    period : int, optional
        Number of steps after which a series repeats itself.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid.

    Examples
    --------
    >>> from gradcore.diagnosis import Config
    >>> config = Config("adding", cell="gru", hidden=8)
    >>> config.hidden, config.init, config.gain
    (8, 'default', 1.0)
    """

    source: str
    target: str | int | None = None
    cell: str = "rnn"
    hidden: int = 64
    layers: int = 1
    init: str = "default"
    gain: float = 1.0
    seq_len: int | None = None
    batch: int = 32
    steps: int = 300
    lr: float = 0.02
    optimizer: str = "sgd"
    seed: int = 0
    seeds: int = 3
    gate_bias: float | None = None
    model: str | None = None
    inputs: tuple[str | int, ...] | None = None
    time: str | int | None = None
    group: str | int | None = None
    missing: str = "skip"
    na: tuple[str, ...] = ()
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    horizon: int | None = None
    period: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("cell", BY_NAME), ("init", INITS), ("optimizer", OPTIMIZERS)):
            check_choice(name, getattr(self, name), known)
        for name in ("hidden", "layers", "batch", "steps", "seeds"):
            check_int(name, getattr(self, name), least=1)
        check_int("seed", self.seed)
        check_number("gain", self.gain, above=0.0, most=LARGEST_GAIN)
        if not math.isfinite(check_number("lr", self.lr, above=0.0)):
            raise ValueError(f"lr: expected a finite number, got {self.lr}")
        if self.model is not None:
            split_model(self.model)
        if self.gate_bias is not None:
            if BY_NAME[self.cell].keeping is None:
                raise ValueError(f"gate_bias: expected None, since {self.cell} has no gates, got {self.gate_bias}")
            if not math.isfinite(check_number("gate_bias", self.gate_bias)):
                raise ValueError(f"gate_bias: expected a finite number, got {self.gate_bias}")

    def problem(self, task: Task) -> Problem:
        """Return the training run of this configuration, as recipes.

        Parameters
        ----------
        task : Task
            What `task_of` returned for the same source.

        Returns
        -------
        Problem
            Whose makers are of type `Recipe`.
        """
        data: list[Step] = [
            Known("task", task, _load(self)),
            Let("batches", call("task.batches", self.batch, self.steps, seed=self.seed)),
        ]
        rule = call(f"gradcore.optim.{OPTIMIZERS[self.optimizer]}", Name("model"), lr=self.lr)
        optimizer = Recipe([Let("optimizer", rule)], "optimizer", takes=["model"])
        return Problem(
            Recipe(self._model(task), "model"), Recipe(data, "batches"), task.loss, optimizer,
            test=task.test, accuracy=task.accuracy, lr=self.lr,
            vary=lambda task=task, **changes: replace(self, **changes).problem(task),
        )  # fmt: skip

    def _model(self, task: Task) -> list[Step]:
        rng = Let("rng", call("np.random.default_rng", self.seed))
        if self.model is not None:
            file, name = split_model(self.model)
            return [
                Known("task", task, _load(self)),
                Known("build", own_builder(file, name), InFile(file, name)),
                rng,
                Let("model", call("build", Name("task"), Name("rng"))),
            ]
        sizes = (task.input_size, self.hidden) + ((self.layers,) if self.layers != 1 else ())
        read = () if task.every_step else (call("gradcore.LastStep"),)
        return [
            rng,
            Let("recurrent", call(f"gradcore.{BY_NAME[self.cell].layer}", *sizes, rng=Name("rng"))),
            *self._start(),
            *self._gate_biases(),
            Let("output", call("gradcore.Linear", self.hidden, task.output_size, rng=Name("rng"))),
            Let("model", call("gradcore.Sequential", Name("recurrent"), *read, Name("output"))),
        ]

    def _start(self) -> list[Step]:
        """The start of the recurrent matrices, where it is not the layer's own."""
        gate, rng = Name("gate"), Name("rng")
        scale = [call("np.multiply", gate, self.gain, out=gate)] if self.gain != 1 else []
        body: list[Call] = {
            "default": scale,
            "normal": [call("gradcore.init.normal_", gate, std=self.gain / math.sqrt(self.hidden), rng=rng)],
            "orthogonal": [call("gradcore.init.orthogonal_", gate, gain=self.gain, rng=rng)],
            "eye": [call("gradcore.init.eye_", gate), *scale],
        }[self.init]
        return [ForEachGate(self.hidden, tuple(body))] if body else []

    def _gate_biases(self) -> list[Step]:
        keeping = BY_NAME[self.cell].keeping
        if self.gate_bias is None or keeping is None:
            return []
        first = keeping.gate * self.hidden
        values = {"bias_ih": self.gate_bias, "bias_hh": 0.0}
        return [
            SetRows(f"{name}_l{layer}", first, first + self.hidden, value)
            for layer in range(self.layers)
            for name, value in values.items()
        ]


def split_model(model: str) -> tuple[str, str]:
    """Return the file and the name of ``FILE.py:NAME``.

    Parameters
    ----------
    model : str
        The text.

    Returns
    -------
    tuple of str
        Both.

    Examples
    --------
    >>> from gradcore.diagnosis.config import split_model
    >>> split_model("nets/gru.py:build")
    ('nets/gru.py', 'build')
    """
    file, _, name = model.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"model: expected FILE.py:NAME, got {model!r}")
    return file, name


@cache
def own_builder(file: str, name: str) -> Callable[..., Any]:
    """Return the function of this name from a file, which is run once.

    Parameters
    ----------
    file : str
        A Python file.
    name : str
        The function.

    Returns
    -------
    callable
        ``NAME(task, rng)``.

    Raises
    ------
    gradcore.data.SourceError
        If there is no such file or function.

    Examples
    --------
    >>> from gradcore.diagnosis.config import own_builder
    >>> own_builder("nowhere.py", "build")
    Traceback (most recent call last):
    ...
    gradcore.data.errors.SourceError: nowhere.py: no such file
    """
    if not Path(file).is_file():
        raise SourceError(f"{file}: no such file")
    found = runpy.run_path(file)
    if not callable(found.get(name)):
        known = ", ".join(key for key, value in found.items() if callable(value) and not key.startswith("_"))
        raise SourceError(f"{file}: has no function {name!r}" + (f"; it has {known}" if known else ""))
    return cast("Callable[..., Any]", found[name])


def configure(source: str, **options: Any) -> Config:
    """Return a configuration with the source's defaults for each option that is missing or None.

    Parameters
    ----------
    source : str
        What to learn.
    **options
        The other parameters of `Config`.

    Returns
    -------
    Config
        The configuration.

    Examples
    --------
    >>> from gradcore.diagnosis import configure
    >>> configure("sunspots").gain, configure("adding", hidden=8, lr=None).lr
    (1.8, 0.02)
    """
    given = {name: value for name, value in options.items() if value is not None}
    plain_rnn = given.get("cell", Config.cell) == Config.cell and not given.keys() & {"init", "model"}
    return Config(source, **((SUNSPOTS if source == "sunspots" and plain_rnn else {}) | given))


def _load(config: Config) -> Call:
    given = {name: getattr(config, name) for name in LOADED}
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v != getattr(Config, name)}
    return call("gradcore.data.load", config.source, **given)


def task_of(config: Config) -> Task:
    """Open the source of a configuration.

    Parameters
    ----------
    config : Config
        What to diagnose.

    Returns
    -------
    Task
        What its model is to learn.

    Raises
    ------
    gradcore.data.SourceError
        If the source cannot be read or learned from.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> task = task_of(Config("adding", seq_len=20))
    >>> task.steps, task.input_size, task.output_size
    (20, 2, 1)
    """
    task: Task = Recipe([Let("task", _load(config))], "task")()
    return task


def program(problem: Problem) -> str:
    """Return the Python that trains a configuration's problem to the same numbers.

    Parameters
    ----------
    problem : Problem
        What `Config.problem` returned, changed by remedies or not.

    Returns
    -------
    str
        Lines that leave the `History` in the variable ``history``.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, program, task_of
    >>> config = Config("adding", steps=5)
    >>> print(program(config.problem(task_of(config))).splitlines()[-1])
    history = gradcore.fit(model, batches, task.loss, optimizer, epochs=1)
    """
    names = map(Name, ("model", "batches", "task.loss", "optimizer"))
    fit = Let("history", call("gradcore.fit", *names, epochs=1, **problem.clipping))
    data = str(problem.data).splitlines()
    model = [line for line in str(problem.model).splitlines() if line not in data]
    text = "\n".join([*data, *model, str(problem.optimizer), *fit.lines()])
    imports = ["import runpy", ""] * ("runpy." in text) + ["import gradcore", "import numpy as np", ""]
    return "\n".join([*imports, text])
