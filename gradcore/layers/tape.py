"""What a forward pass keeps, and what the backward pass has met, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gradcore._base.check import Array

__all__ = ["Member", "Profile", "Tape"]


class Profile(NamedTuple):
    """Hold the norms of the gradient over time in one layer and direction.

    Parameters
    ----------
    name : str
        Such as "l0" or "l1_reverse", as in the names of parameters; "2.l0" for the member of a model.
    reverse : bool
        Whether the direction runs from the last time step to the first.
    dh_norm : ndarray, (T,), float64
        The L2 norm over batch and units of dL/dh_t.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.GRU(3, 4)
    >>> y, tape = layer.forward(np.ones((6, 2, 3), np.float32))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> (profile,) = tape.profiles()
    >>> profile.name, profile.reverse, profile.dh_norm.shape
    ('l0', False, (6,))
    """

    name: str
    reverse: bool
    dh_norm: Array


class Member(NamedTuple):
    """Hold one tape of those that `Tape.walk` yields, and what is known of the gradient at its layer.

    Parameters
    ----------
    name : str
        Such as "2" or "0.1", as the names of its parameters begin; "" for the model or layer itself.
    path : tuple of int
        Which of the model's tapes, which of that one's, and so on.
    tape : Tape
        The tape.
    in_chain : bool
        Whether every model around it applies its layers one after the other.
    dx_norm : float or None
        The L2 norm of dL/d(input); None where it is not known.
    dy_norm : float or None
        The L2 norm of dL/dy; None where it is not known.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.MLP([3, 2])
    >>> y, tape = model.forward(np.ones((4, 3), np.float32))
    >>> dx = model.backward(tape, np.ones((4, 2), np.float32))
    >>> whole, linear = tape.walk()
    >>> linear.name, linear.in_chain, round(linear.dy_norm, 4)
    ('0', True, 2.8284)
    """

    name: str
    path: tuple[int, ...]
    tape: Tape
    in_chain: bool
    dx_norm: float | None = None
    dy_norm: float | None = None

    def profiles(self) -> Iterator[Profile]:
        """Yield the norms over time with full names.

        Yields
        ------
        Profile
            Those of a layer and direction.
        """
        for profile in self.tape.profiles():
            yield profile._replace(name=f"{self.name}.{profile.name}" if self.path else profile.name)


class Tape:
    """Keep what `backward` needs of a forward pass, and tell what `backward` has met.

    It keeps arrays, not copies, so leave x and y unchanged until `backward`. The methods and properties of a subclass
    tell more; here they tell nothing.

    Parameters
    ----------
    layer : Layer
        The layer, whose `forward` makes the tape.
    shape : tuple of int
        The shape of y.
    *kept : object
        What the layer's `backward` needs.
    tapes : sequence of Tape
        The tapes of the layers that it consists of.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> y, tape = gradcore.Linear(3, 2).forward(np.ones((5, 3), np.float32))
    >>> tape
    <Tape of Linear(3, 2): y (5, 2)>
    """

    def __init__(self, layer: Any, shape: tuple[int, ...], *kept: Any, tapes: Sequence[Tape] = ()) -> None:
        if tapes:
            for i, tape in enumerate(tapes):
                if not isinstance(tape, Tape):
                    raise TypeError(f"tapes[{i}]: expected a Tape, got {type(tape).__name__}")
            if len(tapes) != len(layer.names):
                raise ValueError(f"tapes: expected one for each of {len(layer.names)} layers, got {len(tapes)}")
        self.layer, self.shape, self.kept, self.tapes = layer, shape, kept, tuple(tapes)

    @property
    def is_chain(self) -> bool:
        """Whether `tapes` belong to layers that are applied one after the other."""
        return False

    @property
    def first_nonfinite(self) -> tuple[int, int, int] | None:
        """Where the backward pass first met a value that is not finite: (layer, direction, t), or None."""
        return None

    @property
    def state(self) -> Any:
        """The final states of the recurrent layers that it consists of, a tuple in their order."""
        return self._gather("state")

    @property
    def dstate(self) -> Any:
        """The gradients with respect to their initial states, likewise; None before `backward`."""
        found = self._gather("dstate")
        return None if any(each is None for each in found) else found

    def _gather(self, name: str) -> tuple[Any, ...]:
        found: list[Any] = []
        for tape in self.tapes:
            if tape.tapes:
                found += tape._gather(name)
            elif tape.layer.n_states:
                found.append(getattr(tape, name))
        return tuple(found)

    def profiles(self) -> Iterator[Profile]:
        """Yield the norms of the gradient over time, for each layer and direction.

        Yields
        ------
        Profile
            The name, the direction and the norms.
        """
        yield from ()

    def norms_at(self, i: int) -> tuple[float | None, float | None]:
        """Return the norms of dL/d(input) and dL/dy of layer i of those in `tapes`.

        Parameters
        ----------
        i : int
            Which layer.

        Returns
        -------
        tuple of two floats
            The norms; None for one that is not known.
        """
        return None, None

    def walk(self) -> Iterator[Member]:
        """Yield this tape, and all those of which it consists.

        Yields
        ------
        Member
            A tape, its place, and the norms of the gradient there.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> model = gradcore.Sequential(gradcore.GRU(3, 4, bidirectional=True), gradcore.Linear(8, 1))
        >>> y, tape = model.forward(np.ones((6, 2, 3), np.float32))
        >>> dx = model.backward(tape, np.ones_like(y))
        >>> [member.name for member in tape.walk()]
        ['', '0', '1']
        >>> [profile.name for member in tape.walk() for profile in member.profiles()]
        ['0.l0', '0.l0_reverse']
        """
        yield from self._walk(Member("", (), self, in_chain=True))

    def _walk(self, member: Member) -> Iterator[Member]:
        yield member
        in_chain = member.in_chain and self.is_chain
        for i, tape in enumerate(self.tapes):
            name = f"{member.name}.{self.layer.names[i]}" if member.name else self.layer.names[i]
            yield from tape._walk(Member(name, (*member.path, i), tape, in_chain, *self.norms_at(i)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.layer!r}: y {self.shape}>"
