"""Imports only go down from one layer of the package to another, and the library never imports the application."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxddpg"
LAYERS = [
    {"types", "settings", "statistics"},
    {"parts"},
    {"agents", "envs", "training"},
    {"config", "report"},  # from here on the application
    {"runs"},
    {"check"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
APPLICATION = ("yaml", "rich", "matplotlib", "orbax", "PIL")
"""Packages that only the application needs."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imported(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def own(path):
    """The top-level modules and folders of the package that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("jaxddpg.")}


@pytest.mark.parametrize(("name", "path"), [entry for entry in modules() if entry[0] != "__init__"])
def test_imports_go_down(name, path):
    folder = name.split(".")[0]
    beside = {other for other in own(path) if LEVEL[other] == LEVEL[folder] and other != folder}
    assert {other for other in own(path) if LEVEL[other] > LEVEL[folder]} == set()
    assert not beside or folder in LAYERS[0]


@pytest.mark.parametrize(("name", "path"), [entry for entry in modules() if entry[0] != "__init__"])
def test_the_library_needs_no_package_of_the_application(name, path):
    if LEVEL[name.split(".")[0]] < LEVEL["config"]:
        assert not {package for package in APPLICATION for used in imported(path) if used.split(".")[0] == package}


def test_the_loop_knows_no_environment_library():
    assert "gymnax" not in (PACKAGE / "training" / "loop.py").read_text()


def own_lines(function):
    """The lines of a function without those of the functions in it, and with them."""
    size = lambda node: node.end_lineno - node.lineno + 1  # noqa: E731
    inner = sum(size(node) for node in ast.iter_child_nodes(function) if isinstance(node, ast.FunctionDef))
    return size(function) - inner, size(function)


@pytest.mark.parametrize(("name", "path"), [*modules()])
def test_files_and_functions_are_short(name, path):
    """A factory of a record of functions may hold them all."""
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            own, whole = own_lines(node)
            assert own <= 60, f"{name}.{node.name} has {own} lines"
            assert whole <= 120, f"{name}.{node.name} has {whole} lines with all that it holds"


def test_the_top_level_is_small():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 16
