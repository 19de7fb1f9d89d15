"""A progress bar for long loops, in terminals and notebooks."""

from __future__ import annotations

import sys
import time
from html import escape
from types import TracebackType
from typing import Any

__all__ = ["ProgressBar"]

DELAY = 1.0  # seconds of work before a bar appears: short work needs none
INTERVAL = 0.1  # seconds between two drawings
NARROW = 80  # columns: below, there is room for the count and the note only


class ProgressBar:
    """Show how far a loop has come; use it as a context manager.

    In a terminal the bar is on standard error, drawn by rich, and what the loop prints appears above it. In a notebook
    it is one line of HTML. It goes away at the end.

    Parameters
    ----------
    total : int or None
        The number of calls of `update` to come, None while it is unknown. It can be set later.
    label : str
        What is going on, in a word or two.
    show : bool, optional
        By default, show the bar after a second of work, in a notebook or where standard error is a terminal and rich is
        installed. True shows it at once and anywhere, False never.

    Raises
    ------
    ImportError
        If `show` is True, there is no notebook, and rich is not installed.

    Examples
    --------
    >>> from gradcore._base.progress import ProgressBar
    >>> with ProgressBar(total=3, label="counting") as bar:
    ...     for i in range(3):
    ...         bar.update(f"at {i}")
    """

    def __init__(self, total: int | None, label: str, *, show: bool | None = None) -> None:
        self.total = total
        self._label = label
        self._done = 0
        self._screen: _Notebook | _Terminal | None = None
        self._drawn = time.monotonic() + (DELAY if show is None else 0.0) - INTERVAL
        self._kind: type[_Notebook] | type[_Terminal] | None = None
        if show is not False and _in_notebook():
            self._kind = _Notebook
        elif show or (show is None and sys.stderr is not None and sys.stderr.isatty()):
            self._kind = _Terminal
        if show:
            self._open(required=True)

    def _open(self, *, required: bool = False) -> None:
        if self._kind is None:
            return
        try:
            self._screen = self._kind(self._label, self.total)
        except ImportError:
            self._kind = None
            if required:
                raise ImportError('a progress bar needs rich: pip install "gradcore[cli]"') from None

    def update(self, note: str = "") -> None:
        """Count one step.

        Parameters
        ----------
        note : str
            What to show beside the bar, such as the loss.

        Examples
        --------
        >>> from gradcore._base.progress import ProgressBar
        >>> with ProgressBar(total=None, label="searching") as bar:
        ...     bar.update("loss 0.5")
        """
        self._done += 1
        now = time.monotonic()
        if self._kind is None or now - self._drawn < INTERVAL:
            return
        self._drawn = now
        if self._screen is None:
            self._open()
        if self._screen is not None:
            self._screen.draw(self._done, self.total, note)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen is not None:
            self._screen.close()


class _Terminal:
    """A bar of rich. It is drawn by `draw`, not by a thread: nothing runs beside the kernels, and a fork is safe."""

    def __init__(self, label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        looked_at = sys.stderr is not None and sys.stderr.isatty()
        console = Console(stderr=True, force_terminal=None if looked_at else True)
        wide = console.width >= NARROW
        note = TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, ratio=not wide or None)
        )
        bar = BarColumn(bar_width=None, table_column=Column(max_width=40))
        columns = [TextColumn("{task.description}"), bar, MofNCompleteColumn(), TimeRemainingColumn(), note]
        self._bar = Progress(
            *(columns if wide else [MofNCompleteColumn(), note]),
            console=console,
            auto_refresh=False,
            expand=not wide,
            transient=True,
        )
        self._task = self._bar.add_task(label, total=total, note="")
        self._bar.start()

    def draw(self, done: int, total: int | None, note: str) -> None:
        self._bar.update(self._task, completed=done, total=total, note=note, refresh=True)

    def close(self) -> None:
        self._bar.stop()


class _Notebook:
    """A line of HTML that is replaced at each drawing, and plain text for consoles without HTML."""

    def __init__(self, label: str, total: int | None) -> None:
        from IPython.display import display

        self._label = label
        self._handle: Any = display({"text/plain": label}, raw=True, display_id=True)

    def draw(self, done: int, total: int | None, note: str) -> None:
        count = f"{done}/{'?' if total is None else total}"
        share = "" if total is None else f' value="{done}" max="{total}"'
        html = f"{escape(self._label)} <progress{share}></progress> {count} &ensp; {escape(note)}"
        self._show({"text/plain": f"{self._label} {count}  {note}", "text/html": html})

    def close(self) -> None:
        self._show({"text/plain": "", "text/html": ""})

    def _show(self, data: dict[str, str]) -> None:
        self._handle.update(data, raw=True)


def _in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook. IPython has been imported then."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None
