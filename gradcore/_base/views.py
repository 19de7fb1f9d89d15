"""Named arrays of a layer: assigning to a name copies into the array."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from gradcore._base.check import Array, check_array, check_names

__all__ = ["Arrays", "Views", "split"]


class Arrays(dict[str, Array]):
    """Hold named arrays that stay what they are: assigning to a name copies the values into its array.

    It reads like any dict. Values are checked for dtype and shape first; names cannot be added or removed. A copy is a
    plain dict.

    Parameters
    ----------
    label : str
        What errors call it.
    arrays : dict of str to ndarray
        The arrays.

    Examples
    --------
    >>> import numpy as np
    >>> mean = np.zeros(2)
    >>> arrays = Arrays("buffers", {"mean": mean})
    >>> arrays["mean"] = np.ones(2)
    >>> mean
    array([1., 1.])
    """

    def __init__(self, label: str, arrays: Mapping[str, Array]) -> None:
        super().__init__(arrays)
        self._label = label

    def load(self, values: Any) -> None:
        """Copy in a value for each name."""
        check_names(self._label, values, self)
        self.update(values)

    def update(self, *values: Any, **named: Any) -> None:
        """Copy in the values of these names; nothing is changed unless all of them fit."""
        given = dict(*values, **named)
        for name in given:
            if name not in self:
                raise KeyError(f"{self._label}: expected one of {', '.join(self)}, got {name!r}")
        checked = {}
        for name, value in given.items():
            own = self[name]
            if value is not own:  # as after params[name] *= 2
                fits = check_array(name, value, own.dtype, own.shape)
                checked[name] = fits if len(given) == 1 else fits.copy()  # which may be a view of another
        for name, value in checked.items():
            self[name][...] = value

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __ior__(self, values: Any) -> Arrays:  # type: ignore[override,misc]
        self.update(values)
        return self

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(f"{self._label}: names cannot be added or removed")

    __delitem__ = clear = pop = popitem = setdefault = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Array]], tuple[dict[str, Array]]]:
        return dict, (dict(self),)


class Views(Arrays):
    """Hold the named views of one flat buffer: `params` or `grads` of a layer.

    No array here can come apart from the buffer.

    Parameters
    ----------
    label : str
        What errors call it.
    arrays : dict of str to ndarray
        The views.
    flat : ndarray, (n,)
        The buffer.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.Linear(2, 1)
    >>> layer.params.update(weight=np.ones((1, 2), np.float32), bias=np.zeros(1, np.float32))
    >>> layer.params["weight"] *= 2
    >>> layer.flat_params
    array([2., 2., 0.], dtype=float32)
    """

    def __init__(self, label: str, arrays: Mapping[str, Array], flat: Array) -> None:
        super().__init__(label, arrays)
        self.flat = flat
        self._lists: list[list[Array | None]] | None = None

    def move(self, flat: Array) -> None:
        """Move the values into another buffer."""
        self.follow(split(flat, {name: view.shape for name, view in self.items()}), flat, keep=True)

    def follow(self, arrays: Mapping[str, Array], flat: Array, *, keep: bool = False) -> None:
        """Hold these views of another buffer from now on.

        Views of the old one become read-only: who still has some, an optimizer perhaps, would change what no layer
        reads any more, and learns so from an error.
        """
        for name, view in arrays.items():
            old = self.get(name)
            if old is not None and old is not view:
                if keep:
                    view[...] = old
                old.flags.writeable = False
            dict.__setitem__(self, name, view)
        self.flat.flags.writeable = False
        self.flat, self._lists = flat, None

    def lists(self, names: Sequence[Sequence[str]]) -> list[list[Array | None]]:
        """Return the views of these names, always the same ones, None for one that there is not.

        They are made once for each buffer.
        """
        if self._lists is None:
            self._lists = [[self.get(name) for name in each] for each in names]
        return self._lists


def split(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return views of these shapes, one behind the other."""
    views, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        views[name] = flat[start:end].reshape(shape)
        start = end
    return views
