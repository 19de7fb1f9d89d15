"""Recipes: small steps that run, and that print themselves as the Python that does the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["Name", "Recipe", "call"]

Names = dict[str, Any]


class Step(Protocol):
    """One statement of a recipe."""

    def run(self, names: Names) -> Any:
        """Do it.

        Parameters
        ----------
        names : dict
            Variables of the recipe by name, which it may set.

        Returns
        -------
        object
            Its value, if it has one.
        """

    def lines(self) -> list[str]:
        """Say it in Python.

        Returns
        -------
        list of str
            Lines that do the same.
        """


@dataclass(frozen=True, repr=False)
class Name:
    """A variable of a recipe, or an attribute of one.

    Parameters
    ----------
    path : str
        Such as ``task.loss``.

    Examples
    --------
    >>> from gradcore.diagnosis.recipe import Name
    >>> Name("array.shape"), Name("array.shape").find({"array": np.zeros(3)})
    (array.shape, (3,))
    """

    path: str

    def find(self, names: Names) -> Any:
        """Look it up.

        Parameters
        ----------
        names : dict
            Variables of the recipe by name.

        Returns
        -------
        object
            What it stands for.
        """
        first, *attributes = self.path.split(".")
        value = names[first]
        for attribute in attributes:
            value = getattr(value, attribute)
        return value

    def __repr__(self) -> str:
        return self.path


@dataclass(frozen=True, repr=False)
class Call(Step):
    """A call of a function; `call` makes one.

    Parameters
    ----------
    function : Name
        Name of the function.
    args : tuple
        Arguments by position, among them names and calls.
    options : dict
        Arguments by name.
    """

    function: Name
    args: tuple[Any, ...]
    options: dict[str, Any]

    def run(self, names: Names) -> Any:
        args = [_value(arg, names) for arg in self.args]
        options = {name: _value(option, names) for name, option in self.options.items()}
        return self.function.find(names)(*args, **options)

    def lines(self) -> list[str]:
        return [repr(self)]

    def __repr__(self) -> str:
        args = [*map(repr, self.args), *(f"{name}={option!r}" for name, option in self.options.items())]
        return f"{self.function}({', '.join(args)})"


def call(function: str, *args: Any, **options: Any) -> Call:
    """Return a call of a function.

    Parameters
    ----------
    function : str
        Its name in a recipe, such as "gradcore.LSTM".
    *args
        Arguments by position, among them names and calls.
    **options
        Arguments by name.

    Returns
    -------
    Call
        The step.

    Examples
    --------
    >>> from gradcore.diagnosis.recipe import Name, call
    >>> call("gradcore.LSTM", 2, 8, rng=Name("rng"))
    gradcore.LSTM(2, 8, rng=rng)
    """
    return Call(Name(function), args, options)


def _value(arg: Any, names: Names) -> Any:
    return arg.find(names) if isinstance(arg, Name) else arg.run(names) if isinstance(arg, Call) else arg


@dataclass(frozen=True)
class Let(Step):
    """Set a variable.

    Parameters
    ----------
    name : str
        The variable.
    value : Call
        What gives its value.
    """

    name: str
    value: Call

    def run(self, names: Names) -> None:
        names[self.name] = self.value.run(names)

    def lines(self) -> list[str]:
        return [f"{self.name} = {self.value}"]


@dataclass(frozen=True)
class Known(Step):
    """Set a variable to what is known already, such as a file that has been read.

    Parameters
    ----------
    name : str
        The variable.
    value : object
        Its value.
    how : Call or InFile
        What gives the same value.
    """

    name: str
    value: Any
    how: Call | InFile

    def run(self, names: Names) -> None:
        names[self.name] = self.value

    def lines(self) -> list[str]:
        return [f"{self.name} = {self.how}"]


@dataclass(frozen=True, repr=False)
class InFile:
    """What a file defines under a name.

    Parameters
    ----------
    file : str
        A Python file.
    name : str
        The name.

    Examples
    --------
    >>> from gradcore.diagnosis.recipe import InFile
    >>> InFile("net.py", "build")
    runpy.run_path('net.py')['build']
    """

    file: str
    name: str

    def __repr__(self) -> str:
        return f"runpy.run_path({self.file!r})[{self.name!r}]"


@dataclass(frozen=True)
class ForEachGate(Step):
    """Do something with each square matrix `gate` among the recurrent weights of the layer `recurrent`.

    Parameters
    ----------
    units : int
        Number of rows of a gate.
    body : tuple of Call
        What is done.
    """

    units: int
    body: tuple[Call, ...]

    def run(self, names: Names) -> None:
        for name, weight in names["recurrent"].params.items():
            if name.startswith("weight_hh"):
                for gate in weight.reshape(-1, self.units, self.units):
                    for step in self.body:
                        step.run(names | {"gate": gate})

    def lines(self) -> list[str]:
        return [
            "for name, weight in recurrent.params.items():",
            '    if name.startswith("weight_hh"):',
            f"        for gate in weight.reshape(-1, {self.units}, {self.units}):",
            *(f"            {line}" for step in self.body for line in step.lines()),
        ]


@dataclass(frozen=True)
class SetRows(Step):
    """Set some rows of a parameter of the layer `recurrent`.

    Parameters
    ----------
    parameter : str
        Name of the parameter.
    first, end : int
        The rows from `first` up to `end`, which is left out.
    value : float
        Their value.
    """

    parameter: str
    first: int
    end: int
    value: float

    def run(self, names: Names) -> None:
        names["recurrent"].params[self.parameter][self.first : self.end] = self.value

    def lines(self) -> list[str]:
        return [f'recurrent.params["{self.parameter}"][{self.first}:{self.end}] = {self.value!r}']


@dataclass(frozen=True)
class Recipe:
    """Steps that make something: call it to run them, `str` gives their Python.

    Parameters
    ----------
    steps : sequence of Step
        What is done, in this order.
    result : str
        The variable that a call returns.
    takes : sequence of str
        The variables that a call is given, in the order of its arguments.

    Examples
    --------
    >>> from gradcore.diagnosis.recipe import Let, Name, Recipe, call
    >>> recipe = Recipe([Let("root", call("np.sqrt", Name("x")))], "root", takes=["x"])
    >>> print(recipe)
    root = np.sqrt(x)
    >>> float(recipe(4.0))
    2.0
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
