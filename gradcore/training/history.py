"""The record of a training run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, overload

import numpy as np

from gradcore._base.check import Array, as_list, check_bool, check_int, check_names, check_path, check_real
from gradcore._base.files import DAMAGE, floats, json_text, write_atomically
from gradcore._base.html import html_table
from gradcore.layers.telemetry import StepTelemetry
from gradcore.training.plot import plot_history
from gradcore.training.rollback import Rollback

__all__ = ["History", "Mark"]

FORMAT = "gradcore.History"
VERSION = 1
STEPS, VALIDATIONS = "loss", "validation_loss"  # the columns that tell how many there are of each


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

    def cut(self, n: int, width: int | None = None) -> None:
        """Keep the first n rows, and of each its first values."""
        self.n = min(n, self.n)
        if width is not None and width < self._buffer.shape[1]:
            self._buffer = self._buffer[:, :width].copy()

    @property
    def array(self) -> Array:
        view = self._buffer[: self.n]
        view.flags.writeable = False
        return view


class _Column:
    """Hold one value for each step, or for each validation; `History` says which."""

    def __init__(self, dtype: Any, of: str = STEPS) -> None:
        self.dtype, self.of = np.dtype(dtype), of

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
    """Hold one value for each step, or for each validation, and name; `History` says which."""

    def __init__(self, of: str = STEPS) -> None:
        self.of = of

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
            wider = np.full((history._columns[self.of].n, len(places) + len(new)), np.nan)
            wider[: rows.n, : len(places)] = rows.array
            rows = _Rows(wider)
            places |= {name: len(places) + i for i, name in enumerate(new)}
            history._tables[self.name] = places, rows
        if places:  # without names there is nothing to count
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
    validation_loss : ndarray, (validations,), float64
        The loss on the validation batches.
    validation_epoch : ndarray, (validations,), int64
        The epoch at whose end it was taken.
    metrics : dict of str to ndarray, (validations,), float64
        The metrics on the validation batches, by name.
    dh_profile : dict of str to ndarray, (T,), float64
        The norm of dL/dh_t at every time step, in the newest step.
    dh_log_mean : dict of str to ndarray, (T,), float64
        The mean over all steps of ln |dL/dh_t|.
    interrupted : bool
        Whether Ctrl-C ended the run.
    rollbacks : list of Rollback
        What a `Supervisor` did about spikes. The steps that it undid are there, and nowhere else.

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
    validation_loss = _Column(np.float64, VALIDATIONS)
    validation_epoch = _Column(np.int64, VALIDATIONS)
    metrics = _Table(VALIDATIONS)
    per_array = _Table()
    d_norm = _Table()
    dh_first = _Table()
    dh_last = _Table()

    def __init__(self) -> None:
        self.interrupted = False
        self.rollbacks: list[Rollback] = []
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
        tape : Tape or StepTelemetry, optional
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
        seen = StepTelemetry.of(tape)
        profiles = {name: row for name, _, row in seen.profiles if len(row)}

        tables: dict[str, Mapping[str, float]] = {
            "per_array": per_array,
            "d_norm": seen.d_norm,
            "dh_first": {name: row[0] for name, row in profiles.items()},
            "dh_last": {name: row[-1] for name, row in profiles.items()},
        }
        for table in TABLES:
            if table.name in tables:
                table.append(self, tables[table.name])
        for name, row in profiles.items():
            self.dh_profile[name] = row.copy()
            self._add_to_log_mean(name, row)
        for name, value in values.items():
            self._columns[name].append(value)

    def append_validation(self, loss: float, metrics: Mapping[str, float] | None = None, *, epoch: int = 0) -> None:
        """Add the validation at the end of an epoch.

        Parameters
        ----------
        loss : float
            The loss on the validation batches.
        metrics : mapping of str to float, optional
            The metrics by name.
        epoch : int
            The epoch, from 0.

        Examples
        --------
        >>> import gradcore
        >>> history = gradcore.History()
        >>> history.append_validation(0.7, {"accuracy": 0.5})
        >>> history.validation_loss.tolist(), history.metrics["accuracy"].tolist()
        ([0.7], [0.5])
        """
        values = {"validation_loss": check_real("loss", loss), "validation_epoch": check_int("epoch", epoch)}
        if metrics is not None and not isinstance(metrics, Mapping):
            raise TypeError(f"metrics: expected a mapping, got {type(metrics).__name__}")
        named = {str(name): check_real(f"metrics[{name!r}]", value) for name, value in (metrics or {}).items()}
        History.metrics.append(self, named)
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

    # ---- its state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything recorded.

        Returns
        -------
        dict
            Arrays, dicts of arrays, the flag `interrupted`, and a dict for each of the `rollbacks`, by attribute.

        Examples
        --------
        >>> import gradcore
        >>> history = gradcore.History()
        >>> history.append(0.9, grad_norm=2.0)
        >>> history.state_dict()["loss"].tolist()
        [0.9]
        """
        state: dict[str, Any] = {"interrupted": self.interrupted}
        state["rollbacks"] = [rollback.to_dict() for rollback in self.rollbacks]
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
        check_names("state_dict", state_dict, ["interrupted", "rollbacks", *columns, *tables, *profiles])
        new.interrupted = check_bool("interrupted", state_dict["interrupted"])
        for i, each in enumerate(as_list("rollbacks", state_dict["rollbacks"])):
            check_names(f"rollbacks[{i}]", each, Rollback.__dataclass_fields__)
            new.rollbacks.append(Rollback.from_dict(each))
        given = {column: _numbers(column.name, state_dict[column.name], column.dtype) for column in COLUMNS}
        lengths = {column.name: rows.size for column, rows in given.items() if column.name in (STEPS, VALIDATIONS)}
        n = lengths[STEPS]
        for column, rows in given.items():
            if rows.shape != (lengths[column.of],):
                raise ValueError(f"{column.name}: expected shape ({lengths[column.of]},), got {rows.shape}")
            columns[column.name] = _Rows(rows)
        for name in [*tables, *profiles]:
            if not isinstance(state_dict[name], Mapping):
                raise TypeError(f"{name}: expected a mapping, got {type(state_dict[name]).__name__}")
        for table in TABLES:
            named, count = state_dict[table.name], lengths[table.of]
            matrix = _numbers(table.name, list(named.values()), np.float64) if named else np.empty((0, count))
            if matrix.shape != (len(named), count):
                raise ValueError(f"{table.name}: expected {count} values for each name")
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
            profile, mean = _numbers(name, profiles[name], np.float64), _numbers(name, means[name], np.float64)
            count = _numbers(name, counts[name], np.int64)
            if profile.ndim != 1 or mean.ndim != 1 or mean.shape != count.shape:
                shapes = f"{profile.shape}, {mean.shape} and {count.shape}"
                raise ValueError(f"{name}: expected profile, mean and count of each time step, got shapes {shapes}")
            if not ((count >= 0) & (count <= n) & (np.isfinite(mean) | (count == 0))).all():
                raise ValueError(f"{name}: expected finite means of at most {n} steps")
            self.dh_profile[name], self._dh_count[name] = profile, count
            self._dh_mean[name] = np.where(count > 0, mean, 0.0)

    # ---- going back in memory ----------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """Remember where the record ends, to `rewind` to.

        Returns
        -------
        Mark
            The place. It costs no more for a long record than for a short one.

        Examples
        --------
        >>> import gradcore
        >>> history = gradcore.History()
        >>> history.append(0.9, grad_norm=2.0)
        >>> place = history.mark()
        >>> history.append(50.0, grad_norm=1e4)
        >>> history.rewind(place)
        >>> history.loss.tolist()
        [0.9]
        """
        profiles = {name: _copies(getattr(self, name)) for name in ("dh_profile", "_dh_mean", "_dh_count")}
        counts = {of: self._columns[of].n for of in (STEPS, VALIDATIONS)}
        return Mark(counts, {name: len(places) for name, (places, _) in self._tables.items()}, profiles)

    def rewind(self, mark: Mark) -> None:
        """Forget all steps and validations since `mark`.

        Parameters
        ----------
        mark : Mark
            What `mark` returned for the same record.
        """
        for column in COLUMNS:
            self._columns[column.name].cut(mark.counts[column.of])
        for table in TABLES:
            (places, rows), width = self._tables[table.name], mark.widths[table.name]
            rows.cut(mark.counts[table.of] if width else 0, width)
            self._tables[table.name] = dict(list(places.items())[:width]), rows
        for name, arrays in mark.profiles.items():
            setattr(self, name, _copies(arrays))

    # ---- JSON --------------------------------------------------------------------------------------------------------

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
            rollbacks = document.pop("rollbacks")  # they have text as well
            history.load_state_dict({**floats(document), "rollbacks": rollbacks})
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
        rows += [("rollback", str(rollback)) for rollback in self.rollbacks]
        if self.validation_loss.size:
            rows.append(
                (
                    "validation loss",
                    f"{self.validation_loss[-1]:.4g}, lowest {np.fmin.reduce(self.validation_loss):.4g}",
                )
            )
            rows += [(name, f"{values[-1]:.4g}") for name, values in self.metrics.items()]
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
        return plot_history(self, axes)


class Mark(NamedTuple):
    """Hold a place in a `History`, for `History.rewind`.

    Parameters
    ----------
    counts : dict of str to int
        The numbers of steps and of validations.
    widths : dict of str to int
        The number of names in each table.
    profiles : dict of str to dict of ndarray
        What changes with each step.

    Examples
    --------
    >>> import gradcore
    >>> gradcore.History().mark().counts
    {'loss': 0, 'validation_loss': 0}
    """

    counts: dict[str, int]
    widths: dict[str, int]
    profiles: dict[str, dict[str, Array]]


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


def _numbers(name: str, value: Any, dtype: Any) -> Array:
    """Return a new array of this dtype, from numbers of its kind; nothing at all is of any kind."""
    try:
        given = np.array(value)
        return np.asarray(given.astype(dtype, casting="same_kind" if given.size else "unsafe"))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name}: expected numbers that fit {np.dtype(dtype)}: {error}") from None


COLUMNS = [column for column in vars(History).values() if isinstance(column, _Column)]
TABLES = [table for table in vars(History).values() if isinstance(table, _Table)]
