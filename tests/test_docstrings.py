"""Every public docstring passes numpydoc's validation; `make docstrings` prints what is missing, file by file."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gradcore

validate = pytest.importorskip("numpydoc.validate").validate

ROOT = Path(gradcore.__file__).parent.parent
# No See Also, no extended summary, and a summary on the first line. Methods and properties need no example: their class
# has one. There are no exceptions for single objects.
OFF = {"SA01", "ES01", "GL01"}
OFF_FOR_MEMBERS = OFF | {"EX01"}


def public_modules() -> list[ModuleType]:
    """The package, and all modules and folders below it whose path has no underscore, but for those that only hold a
    docstring. Bridges to other libraries only where these are installed."""
    names = [name for _, name, _ in pkgutil.walk_packages(gradcore.__path__, "gradcore.") if "._" not in name]
    modules = [gradcore]
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if (error.name or "gradcore").partition(".")[0] == "gradcore":
                raise
    return [module for module in modules if hasattr(module, "__all__") or not is_bare(module)]


def is_bare(module: ModuleType) -> bool:
    """Whether a module's file has nothing but a docstring."""
    return len(ast.parse(inspect.getsource(module)).body) == 1


def members(path: str, cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, also the inherited ones that gradcore defines: name and what defines it."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != "gradcore":
            continue
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{path}.{name}", function


def is_own(value: Any) -> bool:
    """Whether gradcore defines a class or function; another name for a foreign type has no docstring of ours."""
    return value.__module__.partition(".")[0] == "gradcore"


def surface() -> dict[str, bool]:
    """The paths of all public callables, classes, methods and properties, each object once; True for members."""
    found: dict[str, bool] = {}
    seen: set[int] = set()
    for module in public_modules():
        for name in module.__all__:
            path, value = f"{module.__name__}.{name}", getattr(module, name)
            if inspect.ismodule(value) or not callable(value) or id(value) in seen or not is_own(value):
                continue
            seen.add(id(value))
            found[path] = False
            for below, function in members(path, value) if inspect.isclass(value) else ():
                if id(function) not in seen:
                    seen.add(id(function))
                    found[below] = True
    return found


def misses(path: str, member: bool) -> tuple[str, list[str]]:
    """The file of a docstring, and what numpydoc finds wrong."""
    result = validate(path)
    off = OFF_FOR_MEMBERS if member else OFF
    where = os.path.relpath(result["file"], ROOT) if result["file"] else "?"
    return where, [f"{code} {text}" for code, text in result["errors"] if code not in off]


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_a_public_module_says_what_is_public(module: ModuleType) -> None:
    assert isinstance(module.__all__, list)
    for name in module.__all__:
        assert hasattr(module, name), name


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_a_public_name_is_public_where_it_is_defined(module: ModuleType) -> None:
    values = {name: getattr(module, name) for name in module.__all__}
    homes = {name: value.__module__ for name, value in values.items() if callable(value) and is_own(value)}
    hidden = {name: home for name, home in homes.items() if "._" not in home and name not in public_in(home)}
    assert hidden == {}


def public_in(module: str) -> list[str]:
    names: list[str] = importlib.import_module(module).__all__
    return names


def test_every_public_docstring_is_complete() -> None:
    found = {path: misses(path, member)[1] for path, member in surface().items()}
    assert {path: errors for path, errors in found.items() if errors} == {}


def main() -> None:
    for module in public_modules():
        if not hasattr(module, "__all__"):
            print(f"{module.__name__} has no __all__: looked at is what it defines")
            own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            vars(module)["__all__"] = [name for name in own if not name.startswith("_")]
    paths, files, codes = surface(), Counter[str](), Counter[str]()
    lines: dict[str, list[str]] = {}
    for path, member in paths.items():
        where, errors = misses(path, member)
        if errors:
            files[where] += 1
            codes.update(error[:4] for error in errors)
            lines.setdefault(where, []).extend(f"    {path}: {error}" for error in errors)
    for where in sorted(lines):
        print(f"{where}: {files[where]} objects", *lines[where], sep="\n")
    print(f"{files.total()} of {len(paths)} objects miss something: {dict(codes.most_common())}")


if __name__ == "__main__":
    main()
