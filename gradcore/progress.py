"""A progress bar for long work: on standard error, only where somebody looks at it."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

DELAY = 1.0  # seconds of work before a bar appears: short work needs none
INTERVAL = 0.1  # seconds between two drawings


class ProgressBar:
    """A bar that shows itself when the work turns out to be long; a context manager.

    Parameters
    ----------
    total : int or None
        How many calls of `update` are to come, None when that is not known.
    label : str
        What is going on, in a word or two.
    show : bool, optional
        None (default): through rich where it is installed and standard error is a terminal, else nothing at all.
        True: even when standard error is no terminal. False: never.

    Raises
    ------
    ImportError
        If `show` is True and rich is not installed.

    Examples
    --------
    >>> with ProgressBar(total=3, label="counting") as bar:
    ...     for i in range(3):
    ...         bar.update(f"at {i}")
    """

    def __init__(self, total: int | None, label: str, *, show: bool | None = None) -> None:
        self.total = total
        self._label = label
        self._done = 0
        self._bar: Any = None
        self._task: Any = None
        self._drawn = time.monotonic() + (DELAY if show is None else 0.0) - INTERVAL
        self._forced = show is True
        self._wanted = self._forced or (show is None and sys.stderr is not None and sys.stderr.isatty())
        if self._forced:
            self._open()

    def _open(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            self._wanted = False
            if self._forced:
                raise ImportError('a progress bar needs rich: pip install "gradcore[cli]"') from None
            return
        # Drawn from `update`, not from a thread: nothing runs beside the kernels, and a fork finds no lock held.
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True, force_terminal=self._forced or None),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=self.total, note="")
        self._bar.start()

    def update(self, note: str = "") -> None:
        """One step is done; `note` stands at the end of the bar."""
        self._done += 1
        now = time.monotonic()
        if not self._wanted or now - self._drawn < INTERVAL:
            return
        self._drawn = now
        if self._bar is None:
            self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, total=self.total, note=note, refresh=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
