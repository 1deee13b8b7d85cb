"""Imports go strictly upwards, and no room imports its sibling."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxddpg"
LAYERS = [
    {"axes", "notation", "process"},
    {"types", "settings", "tracing"},
    {
        *("equations", "features", "networks", "noise", "replay", "evaluation", "statistics", "shards"),
        *("envs.episodic", "envs.known", "envs.trial"),
    },
    {
        *("agents.copdac", "agents.ddpg", "training", "population"),
        *("envs.from_gymnax", "envs.goddard", "envs.silver2014"),
    },
    {"config", "reporting", "plotting", "rendering", "selection"},
    {"hosts"},
    {"checkpoint"},
    {"cohort", "run_directory", "composition", "check", "memory", "report", "backend"},
    {"origin"},
    {"analysis", "outcome"},
    {"experiment"},
    {"cli"},
    {"__main__"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def modules():
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, path


def imported(path):
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxddpg":
            module = node.module.removeprefix("jaxddpg").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in LEVEL else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "jaxddpg":
                    yield alias.name.removeprefix("jaxddpg").removeprefix(".")


def test_every_room_has_a_place():
    assert {name for name, _ in modules()} == set(LEVEL)


@pytest.mark.parametrize(("name", "path"), sorted(modules()))
def test_imports_go_upwards(name, path):
    assert [module for module in imported(path) if LEVEL[module] >= LEVEL[name]] == []


def test_the_loop_knows_no_agent_and_no_environment_library():
    assert "gymnax" not in (PACKAGE / "training.py").read_text()
    assert not any(module.startswith(("agents", "envs")) for module in imported(PACKAGE / "training.py"))
