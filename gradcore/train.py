"""A training loop and the record it leaves."""

from __future__ import annotations

import inspect
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, overload

import numpy as np

from gradcore._check import Array, as_list, check_bool, check_int, check_names, check_path, check_real
from gradcore._files import DAMAGE, floats, json_text, write_atomically
from gradcore._html import html_table
from gradcore.monitor import GradientMonitor
from gradcore.norm import check_limit, check_policy
from gradcore.progress import ProgressBar
from gradcore.schedule import Schedule
from gradcore.telemetry import recurrent_profiles
from gradcore.threshold import Threshold

__all__ = ["History", "StepRecord", "fit"]

FORMAT = "gradcore.History"
VERSION = 1


class _Rows:
    """An array that grows at its end: its buffer doubles when it is full."""

    def __init__(self, rows: Array) -> None:
        self._buffer, self.n = rows, len(rows)

    def append(self, row: Any) -> None:
        if self.n == len(self._buffer):
            more = np.empty((max(self.n, 64), *self._buffer.shape[1:]), self._buffer.dtype)
            self._buffer = np.concatenate([self._buffer, more])
        self._buffer[self.n] = row
        self.n += 1

    @property
    def array(self) -> Array:
        view = self._buffer[: self.n]
        view.flags.writeable = False
        return view


class _Column:
    """Hold one value for each step; `History` says which."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, history: None, owner: type) -> _Column: ...
    @overload
    def __get__(self, history: History, owner: type) -> Array: ...
    def __get__(self, history: History | None, owner: type) -> _Column | Array:
        return self if history is None else history._columns[self.name].array

    def __set__(self, history: History, value: Any) -> NoReturn:
        raise AttributeError(f"{self.name}: is read-only; add steps with append")


class _Table:
    """Hold one value for each step and name; `History` says which."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, history: None, owner: type) -> _Table: ...
    @overload
    def __get__(self, history: History, owner: type) -> dict[str, Array]: ...
    def __get__(self, history: History | None, owner: type) -> _Table | dict[str, Array]:
        if history is None:
            return self
        places, rows = history._tables[self.name]
        return {name: rows.array[:, i] for name, i in places.items()}

    def __set__(self, history: History, value: Any) -> NoReturn:
        raise AttributeError(f"{self.name}: is read-only; add steps with append")

    def append(self, history: History, values: Mapping[str, float]) -> None:
        places, rows = history._tables[self.name]
        new = [name for name in values if name not in places]
        if new:  # they have no value in the steps before
            places |= {name: len(places) + i for i, name in enumerate(new)}
            rows = _Rows(np.hstack([rows.array, np.full((rows.n, len(new)), np.nan)]))
            history._tables[self.name] = places, rows
        rows.append([values.get(name, np.nan) for name in places])


class History:
    """Record what happens at every step of a training run.

    `fit` returns one. In a loop of your own, call `append` after every step. `to_json` and `from_json` keep it as text;
    `save_checkpoint` stores it beside the model, as it does everything that has a state.

    Attributes
    ----------
    loss : ndarray, (steps,), float64
        The loss.
    grad_norm : ndarray, (steps,), float64
        The gradient norm before clipping.
    coef : ndarray, (steps,), float64
        The factor by which clipping multiplied the gradient: 1 where nothing was clipped.
    max_norm : ndarray, (steps,), float64
        The clip threshold: inf without one, and where an adaptive one set no limit.
    clipped, skipped : ndarray, (steps,), bool
        Whether the gradient was clipped, and whether the step was skipped because the gradient was not finite.
    n_nan, n_inf : ndarray, (steps,), int64
        The number of NaN and of infinite entries in the gradient.
    lr : ndarray, (steps,), float64
        The optimizer's learning rate: NaN where it has none.
    epoch : ndarray, (steps,), int64
        The epoch, from 0.
    seconds : ndarray, (steps,), float64
        The time from the start of the run to the end of the step.
    per_array : dict of str to ndarray, (steps,), float64
        The gradient norm of every parameter, by name: NaN in the steps that did not report it.
    d_norm : dict of str to ndarray, (steps,), float64
        For a `Sequential`: the norm of dL/d(input of the layer) for the layers "0", "1", ..., and of dL/d("output").
    dh_first, dh_last : dict of str to ndarray, (steps,), float64
        For recurrent layers: the norm of dL/dh_t at the first and at the last time step, by layer and direction ("l0",
        "l0_reverse", or "2.l0" for the member of a model).
    dh_profile : dict of str to ndarray, (T,), float64
        The norm of dL/dh_t at every time step, in the newest step.
    dh_log_mean : dict of str to ndarray, (T,), float64
        The mean over all steps of ln |dL/dh_t|.
    interrupted : bool
        Whether Ctrl-C ended the run.

    Examples
    --------
    >>> import gradcore
    >>> history = gradcore.History()
    >>> for loss in (0.9, float("nan"), 0.5):
    ...     history.append(loss, grad_norm=2.0)
    >>> history.loss.tolist()
    [0.9, nan, 0.5]
    >>> history
    History(3 steps, loss 0.9 to 0.5, 0 clipped, 0 skipped)
    """

    loss = _Column(np.float64)
    grad_norm = _Column(np.float64)
    coef = _Column(np.float64)
    max_norm = _Column(np.float64)
    lr = _Column(np.float64)
    seconds = _Column(np.float64)
    epoch = _Column(np.int64)
    n_nan = _Column(np.int64)
    n_inf = _Column(np.int64)
    clipped = _Column(np.bool_)
    skipped = _Column(np.bool_)
    per_array = _Table()
    d_norm = _Table()
    dh_first = _Table()
    dh_last = _Table()

    def __init__(self) -> None:
        self.interrupted = False
        self.dh_profile: dict[str, Array] = {}
        self._dh_mean: dict[str, Array] = {}
        self._dh_count: dict[str, Array] = {}
        self._columns = {column.name: _Rows(np.empty(0, column.dtype)) for column in COLUMNS}
        self._tables: dict[str, tuple[dict[str, int], _Rows]] = {
            table.name: ({}, _Rows(np.empty((0, 0)))) for table in TABLES
        }
        self._start = time.perf_counter()

    def __len__(self) -> int:
        return self._columns["loss"].n

    def append(
        self,
        loss: float,
        grad_norm: float,
        *,
        epoch: int = 0,
        lr: float = math.nan,
        max_norm: float | None = None,
        tape: Any = None,
    ) -> None:
        """Add one step.

        Parameters
        ----------
        loss : float
            The loss of the step.
        grad_norm : float or GradNorm
            The norm that `optimizer.step` returned. A `GradNorm` also tells what was clipped, skipped and not finite,
            and the norm of every parameter.
        epoch : int
            The epoch, from 0.
        lr : float
            The learning rate.
        max_norm : float, optional
            The clip threshold, None without clipping. Of an adaptive threshold pass `GradNorm.max_norm`.
        tape : optional
            The tape of the forward pass, after `backward`: it holds the norms over time steps and layers.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> history = gradcore.History()
        >>> history.append(0.5, gradcore.grad_norm({"weight": np.array([3.0, 4.0])}), epoch=1)
        >>> history.per_array["weight"].tolist()
        [5.0]
        """
        # Check all of it before adding anything: columns of different lengths would be useless.
        values: dict[str, Any] = {
            "loss": check_real("loss", loss),
            "grad_norm": check_real("grad_norm", grad_norm),
            "coef": getattr(grad_norm, "coef", 1.0),
            "max_norm": math.inf if max_norm is None else check_real("max_norm", max_norm),
            "lr": check_real("lr", lr),
            "seconds": time.perf_counter() - self._start,
            "epoch": check_int("epoch", epoch),
            "n_nan": getattr(grad_norm, "n_nan", 0),
            "n_inf": getattr(grad_norm, "n_inf", 0),
            "clipped": getattr(grad_norm, "clipped", False),
            "skipped": getattr(grad_norm, "skipped", False),
        }
        per_array = getattr(grad_norm, "per_array", {})
        if not isinstance(per_array, Mapping):
            per_array = {str(i): norm for i, norm in enumerate(per_array)}
        d_norm = getattr(tape, "d_norm", None)
        d_norm = [] if d_norm is None else [float(norm) for norm in d_norm]
        profiles = {name: row for name, _, row in recurrent_profiles(tape) if len(row)}

        tables: dict[str, Mapping[str, float]] = {
            "per_array": per_array,
            "d_norm": {"output" if i == len(d_norm) - 1 else str(i): norm for i, norm in enumerate(d_norm)},
            "dh_first": {name: row[0] for name, row in profiles.items()},
            "dh_last": {name: row[-1] for name, row in profiles.items()},
        }
        for table in TABLES:
            table.append(self, tables[table.name])
        for name, row in profiles.items():
            self.dh_profile[name] = row.copy()
            self._add_to_log_mean(name, row)
        for name, value in values.items():
            self._columns[name].append(value)

    def _add_to_log_mean(self, name: str, row: Array) -> None:
        mean, count = self._dh_mean.get(name, np.zeros(0)), self._dh_count.get(name, np.zeros(0, np.int64))
        if len(row) > len(mean):
            longer = len(row) - len(mean)
            mean = self._dh_mean[name] = np.concatenate([np.zeros(longer), mean])
            count = self._dh_count[name] = np.concatenate([np.zeros(longer, np.int64), count])
        mean, count = mean[len(mean) - len(row) :], count[len(mean) - len(row) :]
        usable = (row > 0) & (row < np.inf)
        count += usable
        mean += np.where(usable, np.log(np.where(usable, row, 1.0)) - mean, 0.0) / np.maximum(count, 1)

    @property
    def dh_log_mean(self) -> dict[str, Array]:
        """Average ln |dL/dh_t| over all steps, by layer and direction.

        Only finite, positive norms count; a time step without any is NaN. Where batches differ in length, time steps
        are aligned at the end.
        """
        return {name: np.where(self._dh_count[name] > 0, mean, np.nan) for name, mean in self._dh_mean.items()}

    # ---- its state, and JSON -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything recorded.

        Returns
        -------
        dict
            Arrays, dicts of arrays, and the flag `interrupted`, by attribute.

        Examples
        --------
        >>> import gradcore
        >>> history = gradcore.History()
        >>> history.append(0.9, grad_norm=2.0)
        >>> history.state_dict()["loss"].tolist()
        [0.9]
        """
        state: dict[str, Any] = {"interrupted": self.interrupted}
        state |= {column.name: self._columns[column.name].array.copy() for column in COLUMNS}
        named = {table.name: table.__get__(self, History) for table in TABLES}
        named |= {"dh_profile": self.dh_profile, "dh_log_mean": self.dh_log_mean, "dh_count": self._dh_count}
        return state | {key: {name: array.copy() for name, array in arrays.items()} for key, arrays in named.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace what is recorded by what `state_dict` returned; new steps follow it.

        Parameters
        ----------
        state_dict : mapping
            The state to restore. Lists stand for arrays too.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the state is not that of a `History`. Nothing is changed then.

        Examples
        --------
        >>> import gradcore
        >>> history, restored = gradcore.History(), gradcore.History()
        >>> history.append(0.9, grad_norm=2.0)
        >>> restored.load_state_dict(history.state_dict())
        >>> restored.loss.tolist()
        [0.9]
        """
        new = History()
        profiles, columns, tables = ("dh_profile", "dh_log_mean", "dh_count"), new._columns, new._tables
        check_names("state_dict", state_dict, ["interrupted", *columns, *tables, *profiles])
        new.interrupted = check_bool("interrupted", state_dict["interrupted"])
        n = len(state_dict["loss"])
        for column in COLUMNS:
            rows = np.asarray(state_dict[column.name])
            if rows.shape != (n,):
                raise ValueError(f"{column.name}: expected shape ({n},), got {rows.shape}")
            columns[column.name] = _Rows(rows.astype(column.dtype, casting="same_kind" if n else "unsafe"))
        for name in [*tables, *profiles]:
            if not isinstance(state_dict[name], Mapping):
                raise TypeError(f"{name}: expected a mapping, got {type(state_dict[name]).__name__}")
        for table in TABLES:
            named = state_dict[table.name]
            matrix = np.array(list(named.values()), np.float64) if named else np.empty((0, n))
            if matrix.shape != (len(named), n):
                raise ValueError(f"{table.name}: expected {n} steps for each name")
            tables[table.name] = {name: i for i, name in enumerate(named)}, _Rows(np.ascontiguousarray(matrix.T))
        new._load_profiles(state_dict["dh_profile"], state_dict["dh_log_mean"], state_dict["dh_count"], n)
        if n:
            new._start -= float(new.seconds[-1])
        vars(self).update(vars(new))

    def _load_profiles(
        self, profiles: Mapping[str, Any], means: Mapping[str, Any], counts: Mapping[str, Any], n: int
    ) -> None:
        if not profiles.keys() == means.keys() == counts.keys():
            raise ValueError("dh_profile, dh_log_mean, dh_count: expected the same names in all three")
        for name in profiles:
            profile, mean = np.array(profiles[name], np.float64), np.array(means[name], np.float64)
            count = np.array(counts[name]).astype(np.int64, casting="same_kind")
            if profile.ndim != 1 or mean.ndim != 1 or mean.shape != count.shape:
                shapes = f"{profile.shape}, {mean.shape} and {count.shape}"
                raise ValueError(f"{name}: expected profile, mean and count of each time step, got shapes {shapes}")
            if not ((count >= 0) & (count <= n) & (np.isfinite(mean) | (count == 0))).all():
                raise ValueError(f"{name}: expected finite means of at most {n} steps")
            self.dh_profile[name], self._dh_count[name] = profile, count
            self._dh_mean[name] = np.where(count > 0, mean, 0.0)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return everything as strictly valid JSON, which `from_json` restores exactly.

        JSON has no NaN and no infinities: they become the strings "NaN", "Infinity" and "-Infinity".

        Parameters
        ----------
        path : path, optional
            A file to write as well. It is written whole or, if anything goes wrong, not at all.

        Returns
        -------
        str
            The JSON text.

        Examples
        --------
        >>> import gradcore
        >>> history = gradcore.History()
        >>> history.append(float("nan"), grad_norm=2.0)
        >>> '"loss": ["NaN"]' in history.to_json()
        True
        """
        if path is not None:
            path = check_path("path", path)
        text = json_text({"format": FORMAT, "version": VERSION, **self.state_dict()})
        if path is not None:
            write_atomically(path, text.encode())
        return text

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> History:
        """Restore what `to_json` wrote.

        Parameters
        ----------
        source : str or path
            A file, or the text itself, which begins with a brace.

        Returns
        -------
        History
            The record, ready for more steps.

        Raises
        ------
        ValueError
            If it is not the JSON of a `History`.

        Examples
        --------
        >>> import gradcore
        >>> history = gradcore.History()
        >>> history.append(float("nan"), grad_norm=2.0)
        >>> gradcore.History.from_json(history.to_json()).loss.tolist()
        [nan]
        """
        inline = isinstance(source, str) and source.lstrip().startswith("{")
        text = str(source) if inline else Path(check_path("source", source)).read_bytes()
        try:
            document = json.loads(text)
            found = document.pop("format"), document.pop("version")
            if found != (FORMAT, VERSION):
                raise ValueError(f"expected format {FORMAT} version {VERSION}, got {found[0]} version {found[1]}")
            history = cls()
            history.load_state_dict(floats(document))
        except DAMAGE as error:
            raise ValueError(f"{'text' if inline else source}: not a gradcore history: {error}") from error
        return history

    # ---- what people look at -----------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if len(self) == 0:
            return "History(0 steps)"
        return (
            f"History({len(self)} steps, loss {self.loss[0]:.4g} to {self.loss[-1]:.4g}, "
            f"{self.clipped.sum()} clipped, {self.skipped.sum()} skipped)"
        )

    def _repr_html_(self) -> str:
        n = len(self)
        rows: list[tuple[str, str]] = [("steps", f"{n}{', ended by Ctrl-C' if self.interrupted else ''}")]
        if n:
            finite = self.grad_norm[np.isfinite(self.grad_norm)]
            norms = f"median {np.median(finite):.3g}, largest {finite.max():.3g}" if finite.size else "none is finite"
            rows += [
                ("epochs", f"{len(np.unique(self.epoch))}"),
                ("seconds", f"{self.seconds[-1]:.3g}"),
                ("loss", f"{self.loss[0]:.4g} to {self.loss[-1]:.4g}, lowest {np.fmin.reduce(self.loss):.4g}"),
                ("gradient norm", norms),
                ("clipped steps", f"{self.clipped.sum()} ({self.clipped.mean():.0%})"),
                ("skipped steps", f"{self.skipped.sum()}"),
            ]
        return html_table(rows, caption="History")

    def plot(self, axes: Any = None) -> Any:
        """Draw loss and gradient norm over the steps, with the threshold and the clipped and skipped steps.

        Each panel's title states what it shows. The norm's axis is logarithmic, and so is the loss's unless the loss
        takes values of zero or below. Values that cannot be drawn leave gaps: those that are not finite, and outside
        1e-250 to 1e250. Light vertical lines mark the epochs.

        Parameters
        ----------
        axes : pair of matplotlib Axes, optional
            Where to draw the loss and the norm. By default pyplot makes a new figure.

        Returns
        -------
        tuple of matplotlib Axes
            The panel of the loss and that of the norm.

        Raises
        ------
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> import gradcore
        >>> from matplotlib.figure import Figure
        >>> history = gradcore.History()
        >>> for loss in (0.9, 0.5, 0.3):
        ...     history.append(loss, grad_norm=2.0)
        >>> upper, lower = history.plot(Figure().subplots(2, 1, sharex=True))
        >>> upper.get_title(loc="left")
        'The loss falls from 0.9 to 0.3'
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError:
                raise ImportError('plots need matplotlib: pip install "gradcore[cli]"') from None
            axes = pyplot.subplots(2, 1, sharex=True, figsize=(7.2, 5.0), layout="constrained")[1]
        loss_axes, norm_axes = as_list("axes", axes, "a pair of matplotlib Axes")
        steps, loss, norm = np.arange(len(self)), _drawable(self.loss), _drawable(self.grad_norm, above=0.0)

        loss_axes.plot(steps, loss, color=LOSS_COLOR, linewidth=1.2, label="loss")
        norm_axes.plot(steps, norm, color=NORM_COLOR, linewidth=1.2, label="gradient norm")
        if np.isfinite(self.max_norm).any():
            limit = _drawable(self.max_norm, above=0.0)
            norm_axes.plot(steps, limit, color="0.3", linewidth=1, linestyle="--", label="threshold")
        at = np.flatnonzero(self.clipped)
        if at.size:
            norm_axes.plot(at, norm[at], "o", color=NORM_COLOR, markersize=3, label=f"clipped ({len(at)})")
        at = np.flatnonzero(self.skipped)
        if at.size:
            place = {"transform": norm_axes.get_xaxis_transform(), "clip_on": False}
            norm_axes.plot(at, np.full(len(at), 0.97), "kx", markersize=5, label=f"skipped ({len(at)})", **place)
        _decorate(loss_axes, "loss", self._loss_finding(), loss)
        _decorate(norm_axes, "gradient norm", self._norm_finding(), norm)
        marks = norm_axes.get_lines()[1:]
        if marks:
            place = {"loc": "upper right", "bbox_to_anchor": (1.0, -0.12), "borderaxespad": 0.0}
            norm_axes.legend(handles=marks, frameon=False, ncols=len(marks), **place)
        label, starts = "step", np.flatnonzero(np.diff(self.epoch)) + 1
        if starts.size:
            every = -(-len(starts) // MOST_MARKS)
            for start in starts[every - 1 :: every]:
                for panel in (loss_axes, norm_axes):
                    panel.axvline(start - 0.5, color="0.85", linewidth=0.8, zorder=0)
            label += f" (a vertical line every {f'{every} epochs' if every > 1 else 'epoch'})"
        norm_axes.set_xlabel(label, loc="left")
        return loss_axes, norm_axes

    def _loss_finding(self) -> str:
        if len(self) == 0:
            return "No steps yet"
        bad = np.flatnonzero(~np.isfinite(self.loss))
        if bad.size:
            return f"The loss is not finite at {len(bad)} of {len(self)} steps, first at step {bad[0]}"
        # Over as many steps as an epoch has, because a single one may be noise.
        n = int((self.epoch == self.epoch[0]).sum())
        n = n if 10 <= n < len(self) else min(10, (len(self) + 2) // 3)
        first, last = float(np.median(self.loss[:n])), float(np.median(self.loss[-n:]))
        if abs(last - first) <= 0.05 * abs(first):
            return f"The loss stays near {last:.3g}"
        return f"The loss {'falls' if last < first else 'rises'} from {first:.3g} to {last:.3g}"

    def _norm_finding(self) -> str:
        finite = self.grad_norm[np.isfinite(self.grad_norm)]
        if finite.size == 0:
            return "No finite gradient norm"
        finding = f"The gradient norm is at most {finite.max():.3g}"
        if np.isfinite(self.max_norm).any():
            finding += f", {self.clipped.mean():.0%} of steps are clipped"
        n_skipped = int(self.skipped.sum())
        return finding + (f", {n_skipped} {'step is' if n_skipped == 1 else 'steps are'} skipped" if n_skipped else "")


LOSS_COLOR, NORM_COLOR = "#0072B2", "#D55E00"  # of Okabe and Ito's palette, which color-blind readers tell apart
MOST_MARKS = 40  # more epochs than these are marked in part


def _drawable(values: Array, *, above: float = -np.inf) -> Array:
    """Replace by NaN what matplotlib cannot place on an axis."""
    size = np.abs(values)
    return np.where((values > above) & ((size > 1e-250) | (values == 0)) & (size < 1e250), values, np.nan)


def _decorate(axes: Any, label: str, finding: str, values: Array) -> None:
    """Give a panel its title, label, grid and, for positive values, a logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogFormatter

    class PlainLogFormatter(LogFormatter):
        """Write 0.2, where LogFormatter writes 2e-01."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.set_title(finding, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    seen = values[np.isfinite(values)]
    if seen.size and (seen > 0).all():
        axes.set_yscale("log")
        for kind in ("major", "minor"):
            getattr(axes.yaxis, f"set_{kind}_formatter")(PlainLogFormatter(minor_thresholds=(2, 0.5)))


COLUMNS = [column for column in vars(History).values() if isinstance(column, _Column)]
TABLES = [table for table in vars(History).values() if isinstance(table, _Table)]


@dataclass(frozen=True)
class StepRecord:
    """Describe a step to the callbacks of `fit`.

    Attributes
    ----------
    step, epoch : int
        The numbers of the step and of the epoch, both from 0.
    loss : float
        The loss.
    grad_norm : GradNorm
        The norm that `optimizer.step` returned.
    model : layer or model
        The model, after the step.
    tape : tape
        The tape, after `backward`. Do not keep it: the next step uses its buffers again.
    history : History
        The record up to and including this step.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Linear(3, 1)
    >>> batch = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> def callback(record):
    ...     print(record.step, record.epoch, len(record.history))
    >>> optimizer = gradcore.optim.SGD(model)
    >>> history = gradcore.fit(model, [batch], gradcore.losses.mse, optimizer, epochs=2, callbacks=[callback])
    0 0 1
    1 1 2
    """

    step: int
    epoch: int
    loss: float
    grad_norm: Any
    model: Any
    tape: Any
    history: History


def fit(
    model: Any,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    loss: Callable[[Array, Any], tuple[float, Array]],
    optimizer: Any,
    *,
    epochs: int,
    max_norm: float | Threshold | Schedule | None = None,
    step_clip: float | None = None,
    regularizer: Callable[..., float] | None = None,
    nonfinite: str = "skip",
    monitor: GradientMonitor | None = None,
    callbacks: Iterable[Callable[[StepRecord], Any]] = (),
    progress: bool | None = None,
) -> History:
    """Train a model: forward, loss, backward and a clipped step, for every batch of every epoch.

    Ctrl-C ends the run and returns the history so far. It breaks off the forward pass, the backward pass, the loss and
    the wait for a batch at once, and leaves the model and the optimizer as they were after the last whole step. The
    optimizer's update and the callbacks finish first. A second Ctrl-C interrupts these too.

    Parameters
    ----------
    model : layer or model
        The model to train, with `forward`, `backward` and `zero_grad`.
    batches : iterable or callable
        The batches of an epoch: each is (x, target) or (x, target, lengths). An iterable is consumed once an epoch; a
        callable returns a new iterator for each epoch. Arrays need the model's dtype: `fit` does not cast them. Convert
        float64 data once, with ``x.astype(numpy.float32)``, or build the model with ``dtype=numpy.float64``.
    loss : callable
        ``loss(y, target)`` returns the loss and dL/dy.
    optimizer : optimizer
        The optimizer of the model's parameters.
    epochs : int
        The number of passes through `batches`.
    max_norm : float, Threshold or schedule, optional
        The norm to clip the gradient to, as in `optimizer.step`. By default the gradient is not clipped.
    step_clip : float, optional
        The norm to clip each sample's dL/dh_t to, inside the backward pass of recurrent layers.
    regularizer : VanishingGradientRegularizer, optional
        A term of the loss whose gradient the backward pass of recurrent layers adds. `History.loss` does not include
        it. Each recurrent layer's `tape.omega`, which callbacks see, holds its value.
    nonfinite : {"skip", "zero", "raise"}
        What `optimizer.step` does with a gradient that is not finite.
    monitor : GradientMonitor, optional
        A monitor to update after every step and to finish at the end.
    callbacks : iterable of callables
        Functions to call with a `StepRecord` after every step. One that returns True ends the training.
    progress : bool, optional
        Whether to show a `ProgressBar`. By default it appears after a second of work, in a notebook or where standard
        error is a terminal and rich is installed.

    Returns
    -------
    History
        The record of every step.

    Raises
    ------
    ValueError
        If `batches` is an iterator, which can be consumed only once, and `epochs` is above 1; if an epoch has no
        batches or a batch has another form; if no layer of the model takes `step_clip` or `regularizer`.
    TypeError
        If a batch has another dtype than the model.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((64, 3))
    >>> target = x @ [[1.0], [2.0], [3.0]]
    >>> model = gradcore.Linear(3, 1, dtype=np.float64, rng=rng)
    >>> optimizer = gradcore.optim.SGD(model, lr=0.1)
    >>> history = gradcore.fit(model, [(x, target)], gradcore.losses.mse, optimizer, epochs=100, max_norm=1.0)
    >>> bool(history.loss[-1] < 1e-4 * history.loss[0])
    True

    The same loop by hand, with a progress bar:

    >>> from gradcore.progress import ProgressBar
    >>> history = gradcore.History()
    >>> with ProgressBar(total=3, label="training") as bar:
    ...     for epoch in range(3):
    ...         model.zero_grad()
    ...         y, tape = model.forward(x)
    ...         loss, dy = gradcore.losses.mse(y, target)
    ...         dx = model.backward(tape, dy)
    ...         norm = optimizer.step(max_norm=1.0, nonfinite="skip")
    ...         history.append(loss, norm, epoch=epoch, max_norm=1.0, tape=tape)
    ...         bar.update(f"loss {loss:.4g}")
    >>> len(history)
    3
    """
    epochs = check_int("epochs", epochs)
    if max_norm is not None:
        check_limit(max_norm, getattr(optimizer, "n_steps", 0))
    check_policy(nonfinite)
    for name, value, methods in (
        ("model", model, ("zero_grad", "forward", "backward")),
        ("optimizer", optimizer, ("step",)),
        ("monitor", monitor, ("update", "finish")),
    ):
        missing = [method for method in methods if not callable(getattr(value, method, None))]
        if missing and not (value is None and name == "monitor"):
            raise TypeError(f"{name}: expected an object with {' and '.join(methods)}, got {type(value).__name__}")
    given = {"step_clip": step_clip, "regularizer": regularizer}
    backward_options = {name: value for name, value in given.items() if value is not None}
    for name, value in backward_options.items():
        if not _takes(model.backward, name, value):
            raise ValueError(f"{name}: no layer of this model takes it")
    if not callable(loss):
        raise TypeError(f"loss: expected a callable, got {type(loss).__name__}")
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(f"batches: expected an iterable or a callable, got {type(batches).__name__}")
    callbacks = as_list("callbacks", callbacks, "an iterable of callables")
    for i, callback in enumerate(callbacks):
        if not callable(callback):
            raise TypeError(f"callbacks[{i}]: expected a callable, got {type(callback).__name__}")
    if progress is not None:
        check_bool("progress", progress)
    if epochs > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"batches: an iterator can be consumed only once, and epochs is {epochs}; "
            "pass a list, or a function that returns a new iterator for each epoch"
        )
    try:
        total = epochs * len(batches) if isinstance(batches, Sized) else None
    except (TypeError, ValueError) as error:  # an array without axes, a buffer that was released
        raise TypeError(f"batches: expected an iterable, got {type(batches).__name__}: {error}") from None
    history = History()
    n_clipped = 0
    with (
        _Interrupt() as interrupt,
        ProgressBar(total, "training", show=progress) as bar,
    ):
        drawn = _states(model)
        try:
            interrupt.at_once = True
            for epoch, x, target, options in each_batch(batches, epochs):
                model.zero_grad()
                y, tape = model.forward(x, **options)
                value, dy = loss(y, target)
                value = float(value)
                model.backward(tape, dy, **backward_options)
                interrupt.at_once = False

                lr = getattr(optimizer, "lr", math.nan)
                if callable(lr):
                    lr = lr(optimizer.n_steps)  # before the step, which counts itself
                norm = optimizer.step(max_norm=max_norm, nonfinite=nonfinite)
                limit = None if max_norm is None else norm.max_norm
                history.append(value, norm, epoch=epoch, lr=lr, max_norm=limit, tape=tape)
                step = len(history) - 1
                if monitor is not None:
                    monitor.update(step, value, norm, model, tape, y, max_norm=limit)
                record = StepRecord(step, epoch, value, norm, model, tape, history)
                answers = [callback(record) for callback in callbacks]

                if bar.total is None and epoch > 0:
                    bar.total = epochs * int((history.epoch == 0).sum())
                n_clipped += bool(norm.clipped)
                bar.update(f"loss {value:.4g}  norm {float(norm):.3g}  clipped {n_clipped / (step + 1):.0%}")
                if interrupt.requested or any(answer is True or answer is np.True_ for answer in answers):
                    break
                del y, tape, dy, record  # the next step uses their buffers again
                drawn = _states(model)
                interrupt.at_once = True
            interrupt.at_once = False
        except _BrokenOff:
            interrupt.at_once = False
            model.zero_grad()
            for generator, state in drawn:
                generator.bit_generator.state = state
    history.interrupted = interrupt.requested
    if monitor is not None:
        monitor.finish()
    return history


def _takes(method: Callable[..., Any], name: str, value: Any) -> bool:
    """Tell whether a method has this argument."""
    try:
        inspect.signature(method).bind_partial(**{name: value})
    except TypeError:
        return False
    return True


def _states(model: Any) -> list[tuple[np.random.Generator, Any]]:
    """Return the generators that `forward` draws from, each with its state."""
    return [(generator, generator.bit_generator.state) for generator in getattr(model, "generators", list)()]


def each_batch(batches: Any, epochs: int) -> Iterator[tuple[int, Any, Any, dict[str, Any]]]:
    """Yield epoch, x, target and further arguments of `forward` for every batch."""
    for epoch in range(epochs):
        n = 0
        for batch in batches if isinstance(batches, Iterable) else batches():
            n += 1
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                what = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
                raise ValueError(f"batches: expected (x, target) or (x, target, lengths), got {what}")
            yield epoch, batch[0], batch[1], {"lengths": batch[2]} if len(batch) == 3 else {}
        if n == 0:
            raise ValueError(f"batches: epoch {epoch} produced no batches")


class _BrokenOff(KeyboardInterrupt):
    """The first Ctrl-C, at a place where only the step under way is lost."""


class _Interrupt:
    """Inside this context the first Ctrl-C sets `requested` and raises only if `at_once`; the second always raises.

    Python delivers signals to the main thread only. In other threads, and where Ctrl-C is ignored, nothing changes.
    """

    def __init__(self) -> None:
        self.requested = self.at_once = False
        self._before: Any = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.at_once:
            raise _BrokenOff

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before not in (signal.SIG_IGN, None):  # None: not set from Python, so it cannot be restored
                signal.signal(signal.SIGINT, self._handle)
                self._before = before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
