"""What the next method, command or data set is built on: one table, imports that point one way, docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import kdcompress
from kdcompress.data.images import ImageList
from kdcompress.engine.progress import Reporter
from kdcompress.options import METHODS

PACKAGE = Path(kdcompress.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TABLES = ("kdcompress.options.methods", "kdcompress.api.recipes")
# what each package must not import
ABOVE = {
    "api": ("cli",),
    "methods": ("cli", "api", "engine"),
    "engine": ("cli", "api", "methods", "models"),
    "models": ("cli", "api", "methods", "engine"),
    "data": ("cli", "api", "methods", "engine", "models"),
    "report": ("cli", "api", "methods", "engine", "models", "data"),
    "options": ("cli", "api", "methods", "engine", "models", "data"),
}
# methods that torch and timm call, and those that the protocols Reporter and ImageList explain
HOOKS = {"forward", "train", "extra_repr", "group_matcher"} | vars(Reporter).keys() | vars(ImageList).keys()


def imported(name: str) -> Iterator[str]:
    """Modules of this package that a module imports, at its top or within functions; not those for types alone."""
    tree = ast.parse(FILES[name].read_text())
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(part) for node in for_types for part in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [each if each in FILES else node.module for each in full]
        else:
            continue
        yield from (each for each in names if each in FILES and each != name)


def test_imports_have_no_circles() -> None:
    """A module could not be changed, or imported, without all others of its circle."""
    assert len(list(imported("kdcompress.api.job"))) > 20
    list(TopologicalSorter({name: set(imported(name)) for name in FILES}).static_order())


def test_imports_point_one_way() -> None:
    """The training loop would depend on the methods, or a data set on the commands that read it."""
    for name in FILES:
        package = name.split(".")[1] if "." in name else ""
        for other in imported(name):
            assert other.split(".")[1:2] not in [[above] for above in ABOVE.get(package, ())], f"{name}: {other}"


def test_names_of_methods_are_compared_nowhere() -> None:
    """A new method would miss what an ``if`` elsewhere does for those that it names."""
    compared = []
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if name not in TABLES and isinstance(node, (ast.Compare, ast.match_case)):
                texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                compared += [f"{path}:{ast.unparse(node)}" for method in METHODS if method in texts]
    assert not compared


def test_what_is_public_has_a_docstring() -> None:
    """Whoever calls a function would have to read it for shapes, units and errors."""
    missing = []
    for name in FILES:
        if name.endswith("__main__"):  # importing it would run the command line
            continue
        for value in vars(importlib.import_module(name)).values():
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == name:
                missing += without_a_docstring(value)
    assert not missing


def without_a_docstring(value: Any) -> Iterator[str]:
    """Names of a public function, or a class and its own public methods; inherited docstrings count."""
    if value.__name__.startswith("_"):
        return
    if not inspect.getdoc(value):
        yield f"{value.__module__}.{value.__qualname__}"
    for key, member in vars(value).items() if inspect.isclass(value) else ():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        own = inspect.isfunction(function) and function.__name__ == key  # else the default of a field
        if own and not key.startswith("_") and key not in HOOKS and not inspect.getdoc(getattr(value, key)):
            yield f"{value.__module__}.{value.__qualname__}.{key}"
