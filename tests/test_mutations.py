"""The mutations of the package, each of which breaks one law: they apply, and are seen."""

import ast
import builtins
import re

import pytest
from mutations.run import ROOT, read, tried, unchanged

MUTATIONS = read()


def identifiers(text):
    """All names in a module, loaded or bound."""
    nodes = [*ast.walk(ast.parse(text))]
    bound = [node.arg for node in nodes if isinstance(node, ast.arg)]
    bound += [name for node in nodes if isinstance(node, ast.alias) for name in (node.name, node.asname)]
    bound += [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {*bound, *(node.id for node in nodes if isinstance(node, ast.Name))}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies_and_names_tests_that_exist(mutation):
    text = (ROOT / mutation.file).read_text()
    changed = mutation.applied(text)
    assert changed is not None
    # An undefined name would make any test fail.
    assert identifiers(changed) <= identifiers(text) | {*dir(builtins)}
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        function = re.escape(name.partition("[")[0])
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_each_mutation_has_a_name_of_its_own():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20


@pytest.fixture(scope="module")
def sound():
    """The tests pass in a copy without any change, so that it is the change that makes one fail."""
    outcome = unchanged([*dict.fromkeys(test for mutation in MUTATIONS for test in mutation.tests)])
    assert outcome.said == "pass", outcome.output


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_seen(mutation, sound):
    outcome = tried(mutation)
    assert outcome.said == "seen", outcome.output
