"""A lock that a forked child finds free."""

from __future__ import annotations

import os
import threading
from typing import Any, ClassVar
from weakref import WeakSet

__all__ = ["Turn"]


class Turn:
    """Let one Python thread at a time add to a layer's gradients: ``with turn.lock``.

    A forked child and a copy find it free. The lock itself is entered, because Ctrl-C may come between acquiring it in
    an `__enter__` of ours and the `with`.
    """

    _all: ClassVar[WeakSet[Turn]] = WeakSet()

    def __init__(self) -> None:
        # Reentrant only because it then knows its owner without a moment at which the two could disagree.
        self.lock: Any = threading.RLock()
        Turn._all.add(self)

    def refuse_reentry(self) -> None:
        """Raise if this thread has the turn already: a signal handler runs in the middle of a kernel."""
        if self.lock._is_owned():  # what threading.Condition asks
            raise RuntimeError(
                "backward: this thread is in the middle of a backward pass of the same layer; a signal handler that "
                "interrupts one cannot start another"
            )

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()

    @classmethod
    def free_all(cls) -> None:
        """Forget the parent's threads, in a child."""
        for turn in list(cls._all):
            turn.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Turn.free_all)
