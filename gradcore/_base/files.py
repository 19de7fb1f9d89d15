"""Write files whole or not at all, and JSON that every parser reads."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# What reading a damaged file may raise.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)

NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_atomically(path: str | os.PathLike[str], data: bytes, *, keep_previous: bool = False) -> None:
    """Write `data` so that a reader finds the old file or the new one, whatever interrupts.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name in one step. With
    `keep_previous` the old file stays as `previous_path`. It gets that name last: otherwise it would for a moment be
    the only file, under two names.
    """
    target = Path(os.path.realpath(path))  # a link stays, and what it points at is replaced
    writer = f"{os.getpid()}-{threading.get_ident()}"  # each writer has its own temporary files
    temporary, old = (target.with_name(f".{target.name}.{writer}{kind}.tmp") for kind in ("", ".old"))
    try:
        _write_through(temporary, data)
        kept = keep_previous and _second_name(target, old)
        os.replace(temporary, target)
        if kept:
            os.replace(old, previous_path(path))
    finally:
        for left in (temporary, old):
            with contextlib.suppress(OSError):
                left.unlink()
    _sync_folder(target.parent)


def previous_path(path: str | os.PathLike[str]) -> Path:
    """Return the path where `write_atomically` keeps the file that was at `path` before."""
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name}.previous")


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _second_name(file: Path, name: Path) -> bool:
    """Give the file a second name; return False if there is no such file."""
    if not file.exists():
        return False
    with contextlib.suppress(FileNotFoundError):  # left behind by a killed process with the same number
        name.unlink()
    try:
        os.link(file, name)
    except (OSError, AttributeError):  # a file system, or a Python, without hard links
        _write_through(name, file.read_bytes())
    return True


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, if the system supports that."""
    with contextlib.suppress(OSError, AttributeError):  # Windows cannot open folders, some network drives cannot sync
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def jsonable(value: Any) -> Any:
    """Return `value` in JSON's own types: arrays as lists, non-finite numbers as "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        finite = value.dtype.kind not in "fO" or (value.dtype.kind == "f" and bool(np.isfinite(value).all()))
        return value.tolist() if finite else jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"expected a value that JSON can hold, got {type(value).__name__}")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as strictly valid JSON."""
    return json.dumps(jsonable(value), indent=indent, allow_nan=False)


def floats(value: Any) -> Any:
    """Turn the three strings of `jsonable` back into numbers, in nested lists and dicts of numbers."""
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floats(item) for item in value]
    return NONFINITE[value] if isinstance(value, str) else value
