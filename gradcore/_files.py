"""Files that are whole or absent, and JSON that every parser reads."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` so that a reader finds the old file or the new one, whatever interrupts.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name at once.
    """
    target = Path(os.path.realpath(path))  # through a link: what it points at is replaced, not the link
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def jsonable(value: Any) -> Any:
    """`value` in JSON's own types: arrays as lists, non-finite numbers as "NaN", "Infinity", "-Infinity"."""
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
    raise TypeError(f"cannot be written as JSON: {type(value).__name__}")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as strictly valid JSON."""
    return json.dumps(jsonable(value), indent=indent, allow_nan=False)


def floats(value: Any) -> Any:
    """Nested lists of numbers as `jsonable` leaves them, with the three strings turned back into numbers."""
    if isinstance(value, list):
        return [floats(item) for item in value]
    return NONFINITE[value] if isinstance(value, str) else value
