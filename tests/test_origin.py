"""Whether the environment of a run is still the one that it was trained in."""

import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from helpers import after, call, tiny

from jaxddpg import config
from jaxddpg.config import build, tracing
from jaxddpg.config import environment as environment_module
from jaxddpg.envs.episodic import episodic
from jaxddpg.runs import origin
from jaxddpg.runs.checkpoint import Origin
from jaxddpg.runs.load import load_policy
from jaxddpg.runs.start import resume, run
from jaxddpg.settings import Environment

WORLD = {"reward": 1.0, "table": np.zeros(3, np.float32), "squared": False}


def changing(slope=1.0):
    """What it computes depends on WORLD, as if that stood in the code."""
    reward, table, squared = WORLD["reward"], jnp.asarray(WORLD["table"]), WORLD["squared"]

    def step(key, place, action):
        after = place + slope * action[0]
        return after, reward + table[0] + (after**2 if squared else after), jnp.zeros((), bool)

    return episodic(
        reset=jax.random.uniform,
        step=step,
        observe=lambda place: place[None],
        observation_size=1,
        action_size=1,
        episode_length=5,
    )


def experiment(**changes):
    return tiny(environment={"name": f"{__name__}:changing", "parameters": {"slope": 1.0} | changes})


def sentences(before, after=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        origin.check(before, config.resolve(after or experiment()).run())
    return [str(warning.message) for warning in caught]


CHANGES = [("reward", 1.5), ("reward", float(np.nextafter(np.float32(1), 2))), ("squared", True)]


@pytest.mark.parametrize(("name", "value"), [*CHANGES, ("table", np.array([0, 0, 1e-6], np.float32))])
def test_an_environment_that_changed_is_warned_of(name, value, monkeypatch):
    before = Origin(**json.loads(json.dumps(origin.of(config.resolve(experiment()).run())._asdict())))
    assert sentences(before) == []
    monkeypatch.setitem(WORLD, name, value)
    (sentence,) = sentences(before)
    assert sentence.startswith(f"the environment {__name__}:changing differs from the one this run was trained in")
    assert (
        sentences(before._replace(environment={**before.environment, "jax": "0.0.1"})) == []
    )  # which may trace otherwise
    assert sentences(before._replace(environment={**before.environment, "platform": "tpu"})) == []
    with jax.default_matmul_precision("highest"):
        assert sentences(before) == []
    assert sentences(before._replace(environment={})) == []  # of an older run


@pytest.mark.slow
def test_every_command_that_uses_a_run_warns(tmp_path, monkeypatch):
    run(experiment(), tmp_path / "run", should_stop=after(2))
    monkeypatch.setitem(WORLD, "reward", 2.0)
    sentence = "differs from the one this run was trained in"
    for command in (["evaluate", "--num-episodes", 1], ["resume"]):
        with warnings.catch_warnings(action="always"):
            code, _, err = call(command[0], tmp_path / "run", *command[1:])
        assert (code, err.count(sentence)) == (0, 1), err
    with warnings.catch_warnings(action="error"):
        load_policy(tmp_path / "run")  # its newest checkpoint was written since
    monkeypatch.setitem(WORLD, "reward", 1.0)
    with pytest.warns(UserWarning, match=sentence):
        load_policy(tmp_path / "run")
    with pytest.warns(UserWarning, match=sentence):
        resume(tmp_path / "run", {"training.num_epochs": 4})
    records = [json.loads(line) for line in (tmp_path / "run" / "resumptions.jsonl").read_text().splitlines()]
    first, second = (record["environment"]["sha256"] for record in records)
    assert first != second == origin.of(config.resolve(experiment()).run()).environment["sha256"]


def test_a_program_of_the_environment_before_it_changed_is_not_used(monkeypatch):
    """Programs are kept in a process, where a notebook defines an environment again."""
    one = run(experiment())
    monkeypatch.setitem(WORLD, "reward", 2.0)
    other = run(experiment())
    expected = [row["eval/return_mean"] + 5.0 for row in one.rows[:3]]  # 5 steps of 1 more each
    np.testing.assert_allclose([row["eval/return_mean"] for row in other.rows[:3]], expected, rtol=1e-5)


@pytest.mark.parametrize("changed", [{"observation_high": 2.0}, {"action_low": -2.0}, {"episode_length": 6}])
def test_the_ranges_and_the_length_of_an_environment_are_part_of_it(changed, monkeypatch):
    """Features scale to the one and evaluations last for the other, whatever reset and step compute."""
    before = environment_module.digest(experiment().environment)
    original = changing
    monkeypatch.setitem(globals(), "changing", lambda slope: original(slope)._replace(**changed))
    assert environment_module.digest(experiment().environment) != before


def doubled(place):
    return 2 * place


def test_the_source_of_a_callback_is_part_of_an_environment():
    """JAX traces of it that there is one."""

    def calling(function):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return tracing.digest(lambda x: jax.pure_callback(function, shape, x), jnp.zeros(()))

    assert calling(doubled) == calling(doubled) != calling(lambda place: 3 * place)
    assert calling(partial(doubled)) == calling(doubled)
    assert calling(np.sin) == calling(np.sin) != calling(np.cos)


def test_a_key_among_the_constants_of_an_environment_is_a_constant(monkeypatch):
    digests = []
    original = changing
    for seed in (0, 0, 1):
        key = jax.random.key(seed)

        def drawing(slope, key=key):
            world = original(slope)
            return world._replace(reset=lambda unused: world.reset(key))

        monkeypatch.setitem(globals(), "changing", drawing)
        digests.append(environment_module.digest(experiment().environment))
    assert digests[0] == digests[1] != digests[2]


def test_a_whole_number_and_a_truth_value_are_different_parameters():
    one, true = (Environment("x", {"n": value}) for value in (1, True))
    assert jax.tree.structure(one) != jax.tree.structure(true)
    assert jax.tree.map(lambda x: x, Environment("x", {"n": True, "m": 2.0})).parameters == {"n": True, "m": 2.0}


@pytest.mark.slow  # what it clears is compiled again
def test_values_of_traced_parameters_and_what_was_traced_before_change_nothing():
    one, other = (origin.of(config.resolve(experiment(slope=slope)).run()).environment for slope in (1.0, 2.5))
    assert one == other
    build.build(experiment().member())
    jax.jit(probes.echo().step)(jax.random.key(0), probes.echo().reset(jax.random.key(0))[0], jnp.zeros(1))
    jax.clear_caches()
    assert origin.of(config.resolve(experiment()).run()).environment == one
