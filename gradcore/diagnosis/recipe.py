"""Recipes: small steps that run, and that print themselves as the Python that does the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["Call", "ForEachGate", "Known", "Let", "Name", "Recipe", "SetRows", "Step", "call"]

Names = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Name:
    """A variable of a recipe, or an attribute of one: ``task.loss``."""

    path: str

    def run(self, names: Names) -> Any:
        """Return what it stands for."""
        first, *attributes = self.path.split(".")
        value = names[first]
        for attribute in attributes:
            value = getattr(value, attribute)
        return value

    def __repr__(self) -> str:
        return self.path


@dataclass(frozen=True, repr=False)
class Call:
    """A call of a function; `call` makes one. Arguments may be names and calls themselves."""

    function: Name
    args: tuple[Any, ...]
    options: dict[str, Any]

    def run(self, names: Names) -> Any:
        """Make the call and return its result."""
        args = [_value(arg, names) for arg in self.args]
        options = {name: _value(option, names) for name, option in self.options.items()}
        return self.function.run(names)(*args, **options)

    def lines(self) -> list[str]:
        """The Python."""
        return [repr(self)]

    def __repr__(self) -> str:
        args = [*map(repr, self.args), *(f"{name}={option!r}" for name, option in self.options.items())]
        return f"{self.function}({', '.join(args)})"


def call(function: str, *args: Any, **options: Any) -> Call:
    """Return a call of the function that this name has in a recipe."""
    return Call(Name(function), args, options)


def _value(arg: Any, names: Names) -> Any:
    return arg.run(names) if isinstance(arg, (Name, Call)) else arg


class Step(Protocol):
    """One statement of a recipe."""

    def run(self, names: Names) -> Any:
        """Do it, with the variables of the recipe."""

    def lines(self) -> list[str]:
        """Return the Python that does it."""


@dataclass(frozen=True)
class Let:
    """``name = value``."""

    name: str
    value: Call

    def run(self, names: Names) -> None:
        """Set the variable."""
        names[self.name] = self.value.run(names)

    def lines(self) -> list[str]:
        """Return the Python that does it."""
        return [f"{self.name} = {self.value}"]


@dataclass(frozen=True)
class Known:
    """``name = how`` whose result is known already, as of a file that has been read."""

    name: str
    value: Any
    how: Call

    def run(self, names: Names) -> None:
        """Set the variable."""
        names[self.name] = self.value

    def lines(self) -> list[str]:
        """Return the Python that does it."""
        return [f"{self.name} = {self.how}"]


@dataclass(frozen=True)
class ForEachGate:
    """The body for each square matrix `gate` among the recurrent weights of the layer `recurrent`."""

    units: int
    body: tuple[Call, ...]

    def run(self, names: Names) -> None:
        """Run the body for each gate."""
        for name, weight in names["recurrent"].params.items():
            if name.startswith("weight_hh"):
                for gate in weight.reshape(-1, self.units, self.units):
                    for step in self.body:
                        step.run(names | {"gate": gate})

    def lines(self) -> list[str]:
        """Return the Python that does it."""
        return [
            "for name, weight in recurrent.params.items():",
            '    if name.startswith("weight_hh"):',
            f"        for gate in weight.reshape(-1, {self.units}, {self.units}):",
            *(f"            {line}" for step in self.body for line in step.lines()),
        ]


@dataclass(frozen=True)
class SetRows:
    """Give some rows of a parameter of the layer `recurrent` a value."""

    parameter: str
    first: int
    end: int
    value: float

    def run(self, names: Names) -> None:
        """Set the rows."""
        names["recurrent"].params[self.parameter][self.first : self.end] = self.value

    def lines(self) -> list[str]:
        """Return the Python that does it."""
        return [f'recurrent.params["{self.parameter}"][{self.first} : {self.end}] = {self.value!r}']


@dataclass(frozen=True)
class Recipe:
    """Steps that make something: call it to run them, `str` gives their Python.

    Parameters
    ----------
    steps : sequence of Step
        What is done, in this order.
    result : str
        The variable that is returned.
    takes : sequence of str
        The variables that a call is given, in the order of its arguments.
    """

    steps: Sequence[Step]
    result: str
    takes: Sequence[str] = ()

    def __call__(self, *given: Any) -> Any:
        import gradcore  # a recipe uses the names that it prints

        names: Names = {"gradcore": gradcore, "np": np, **dict(zip(self.takes, given, strict=True))}
        for step in self.steps:
            step.run(names)
        return names[self.result]

    def __str__(self) -> str:
        return "\n".join(line for step in self.steps for line in step.lines())
