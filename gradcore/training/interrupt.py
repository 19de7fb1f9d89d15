"""Let Ctrl-C end a loop at a place where nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__: list[str] = []  # for the package only


class BrokenOff(KeyboardInterrupt):
    """The first Ctrl-C, at a place where only the step under way is lost."""


class Interrupt:
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
            raise BrokenOff

    def __enter__(self) -> Interrupt:
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
