"""Tapes that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

import gradcore
from gradcore.layers.tape import Profile, Tape


@cache
def chain(n: int) -> gradcore.Sequential:
    return gradcore.Sequential(*(gradcore.Identity() for _ in range(n)))


class ToldTape(Tape):
    """A tape that tells what it was told."""

    def __init__(self, dh_norm: Any = (), first_nonfinite: Any = None, tapes: Any = (), d_norm: Any = None) -> None:
        super().__init__(chain(len(tapes)), (), tapes=tapes)
        self.dh_norm, self.place, self.d_norm = np.asarray(dh_norm, float), first_nonfinite, d_norm

    @property
    def is_chain(self) -> bool:
        return bool(self.tapes)

    @property
    def first_nonfinite(self) -> Any:
        return self.place

    def profiles(self) -> Iterator[Profile]:
        return (Profile(f"l{layer}", False, row) for layer, row in enumerate(self.dh_norm))

    def norms_at(self, i: int) -> tuple[float | None, float | None]:
        return (None, None) if self.d_norm is None else (float(self.d_norm[i]), float(self.d_norm[i + 1]))
