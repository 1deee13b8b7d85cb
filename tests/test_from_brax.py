"""Environments with Brax's interface. Those of the libraries are tested where the libraries are installed."""

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import after, comparable, equal, needs_library

from jaxddpg import config, settings
from jaxddpg.config.environment import check_environment, make_environment
from jaxddpg.envs import brax, playground
from jaxddpg.envs.brax import choose_opengl, from_brax
from jaxddpg.runs.start import resume, run

KEY = jax.random.key(0)
LIBRARIES = {
    "brax:inverted_pendulum": ("brax.envs", lambda envs: envs.get_environment("inverted_pendulum")),
    "brax:hopper": ("brax.envs", lambda envs: envs.get_environment("hopper", backend="spring")),
    "playground:CartpoleSwingup": (
        "mujoco_playground",
        lambda playground: playground.registry.load("CartpoleSwingup", config_overrides={"impl": "jax"}),
    ),
}
SMALL = {
    "agent": {"batch_size": 8, "actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}},
    "training": {"num_envs": 2, "warmup_steps": 8, "steps_per_epoch": 4, "num_epochs": 3},
    "evaluation": {"num_episodes": 1},
    "population": {"num_seeds": 2},
}


MASSES = np.array([1.0, 2.0, 3.0])


@struct.dataclass
class Physics:
    position: jax.Array
    contacts: jax.Array
    masses: np.ndarray = struct.field(pytree_node=False)


@struct.dataclass
class BraxState:
    pipeline_state: Physics
    obs: Any
    reward: Any
    done: Any
    metrics: dict
    info: dict


class Drift:
    """Written as Brax's environments are: a key in `info`, a weakly typed reward, a `done` that is a float, an
    array of size 0 and one that JAX does not see. It ends beyond 1.5."""

    action_size = 2

    def __init__(self, as_dict=False):
        self.as_dict = as_dict

    def reset(self, rng):
        rng, own = jax.random.split(rng)
        position = jax.random.uniform(own, (3,), minval=-1.0, maxval=1.0)
        physics = Physics(position, jnp.zeros((0, 4)), MASSES)
        return BraxState(physics, self.observed(position), 0.0, jnp.zeros(()), {}, {"rng": rng, "steps": 0})

    def step(self, state, action):
        rng, own = jax.random.split(state.info["rng"])
        old = state.pipeline_state
        position = old.position + 0.2 * action.sum() / old.masses + 0.05 * jax.random.normal(own, (3,))
        info = {"rng": rng, "steps": state.info["steps"] + 1}
        return state.replace(
            pipeline_state=Physics(position, old.contacts, MASSES),
            obs=self.observed(position),
            reward=1.0 - action @ action,
            done=jnp.where(jnp.abs(position[0]) > 1.5, 1.0, 0.0),
            info=info,
        )

    def observed(self, position):
        return {"state": position[:2], "privileged_state": position} if self.as_dict else position


def compare(environment, raw, num_steps, scale=2.0, **tolerance):
    """Steps an `Environment` and the raw environment of the library side by side, with equal actions and keys."""
    observe = lambda state: state.obs["state"] if isinstance(state.obs, dict) else state.obs  # noqa: E731
    reset_raw, step_raw = jax.jit(raw.reset), jax.jit(raw.step)
    reset, step = jax.jit(environment.reset), jax.jit(environment.step)
    state, observation = reset(KEY)
    other, time, ends, starts = reset_raw(KEY), 0, [], [np.asarray(observation)]
    np.testing.assert_allclose(observation, observe(other), **tolerance)
    for number in range(num_steps):
        key = jax.random.fold_in(jax.random.key(1), number)
        reset_key, step_key = jax.random.split(key)
        action = scale * jax.random.uniform(key, (environment.action_size,), minval=-1.0, maxval=1.0)
        state, seen = step(key, state, action)
        if "rng" in other.info:
            other.info["rng"] = step_key
        other, time = step_raw(other, jnp.clip(action, -1.0, 1.0)), time + 1
        np.testing.assert_allclose(seen.final_observation, observe(other), **tolerance)
        np.testing.assert_allclose(seen.reward, other.reward, **tolerance)
        assert seen.terminated == bool(other.done)
        assert seen.truncated == (time == environment.episode_length and not seen.terminated)
        if seen.terminated or seen.truncated:
            ends.append("terminated" if seen.terminated else "truncated")
            other, time = reset_raw(reset_key), 0
            starts.append(np.asarray(seen.observation))
        np.testing.assert_allclose(seen.observation, observe(other), **tolerance)
    assert len(np.unique(starts, axis=0)) == len(starts)  # every episode begins elsewhere
    return ends


@pytest.mark.parametrize("as_dict", [False, True])
def test_an_environment_of_its_interface_equals_the_raw_one_step_by_step(as_dict):
    environment = from_brax(Drift(as_dict), 7)
    assert (environment.observation_size, environment.action_size) == (2 if as_dict else 3, 2)
    assert {"terminated", "truncated"} == {*compare(environment, Drift(as_dict), 60, rtol=1e-5, atol=1e-5)}


def test_the_state_holds_no_key_and_keeps_its_types():
    environment = from_brax(Drift(), 7)
    before, _ = jax.eval_shape(environment.reset, KEY)
    after, seen = jax.eval_shape(environment.step, KEY, before, jnp.zeros(2))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((before, after, seen)))
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(before))


def test_episodes_are_equal_under_vmap():
    environment = from_brax(Drift(), 7)

    def rollout(key):
        state, _ = environment.reset(key)
        return jax.lax.scan(lambda s, k: environment.step(k, s, jnp.full(2, 0.4)), state, jax.random.split(key, 40))[1]

    keys = jax.random.split(KEY, (2, 5))
    alone = [[jax.jit(rollout)(key) for key in row] for row in keys]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *(jax.tree.map(lambda *x: np.stack(x), *row) for row in alone))
    together = jax.jit(jax.vmap(jax.vmap(rollout)))(keys)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), together, stacked)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within Brax
@pytest.mark.parametrize("name", ["brax:inverted_pendulum", "playground:CartpoleSwingup", "playground:ReacherEasy"])
def test_mujoco_draws_a_state(name):
    choose_opengl()  # before MuJoCo is imported
    needs_library(name)
    try:
        import mujoco

        mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
    except Exception as error:
        pytest.skip(f"no OpenGL: {error}")
    environment = make_environment(settings.Environment(name))
    state, _ = jax.jit(environment.reset)(KEY)
    after = state
    for _ in range(20):
        after, _ = jax.jit(environment.step)(KEY, after, jnp.ones(environment.action_size))
    images = environment.render(jax.tree.map(lambda *leaves: np.stack(leaves), state, state, after))
    assert images.shape == (3, 320, 320, 3)
    assert images.dtype == np.uint8
    first, again, second = images
    np.testing.assert_array_equal(first, again)
    assert np.mean(np.any(first != second, axis=-1)) > 0.005  # something moved


@pytest.mark.parametrize("library", ["brax", "playground"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, {"brax": "brax", "playground": "mujoco_playground"}[library], None)
    with pytest.raises(
        config.ConfigError, match=rf"environment {library}:x cannot .* pip install 'jaxddpg\[{library}\]'"
    ):
        make_environment(settings.Environment(f"{library}:x"))


def test_parameters_of_a_library_are_static():
    section = settings.Environment("playground:CartpoleSwingup", {"ctrl_dt": 0.02, "episode_length": 10})
    assert not jax.tree.leaves(section)
    assert jax.tree.map(lambda x: x, section) == section
    assert jax.tree.structure(section) != jax.tree.structure(settings.Environment(section.name, {"ctrl_dt": 0.01}))
    assert jax.tree.leaves(settings.Environment("tasks:cart", {"ctrl_dt": 0.02})) == [0.02]


def load(name):
    """The environment of a name and the raw one."""
    module, make = LIBRARIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = make(pytest.importorskip(module))
    library, _, own = name.partition(":")
    parameters = {"backend": "spring"} if own == "hopper" else {}
    return {"brax": brax, "playground": playground}[library].make(own, episode_length=60, **parameters), raw


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within Brax
@pytest.mark.parametrize("name", LIBRARIES)
def test_an_environment_of_a_library_equals_the_raw_one_step_by_step(name):
    environment, raw = load(name)
    ends = compare(environment, raw, 200, rtol=2e-3, atol=2e-3)
    assert ends[0] == ("truncated" if name == "playground:CartpoleSwingup" else "terminated")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "fault"),
    [
        ("playground:CartpoleSwinup", {}, "MuJoCo Playground has no CartpoleSwinup; it has .*CartpoleSwingup"),
        ("playground:CartpoleSwingup", {"gravity": 3.0}, "CartpoleSwingup has no parameter gravity; it has ctrl_dt"),
        ("brax:antt", {}, "Brax has no antt; it has ant, "),
        ("brax:ant", {"gravity": 3.0}, "unexpected keyword argument 'gravity'"),
    ],
)
def test_an_unknown_name_or_parameter_is_refused_in_a_sentence(name, parameters, fault):
    needs_library(name)
    with pytest.raises(config.ConfigError, match=fault):
        check_environment(settings.Environment(name, parameters))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["playground:CartpoleBalance", "brax:inverted_pendulum"])
def test_a_run_is_resumed_to_the_bit(name, tmp_path: Path):
    needs_library(name)
    sections = SMALL | {"environment": {"name": name, "parameters": {"episode_length": 5}}}
    experiment = config.parse(sections, {"checkpoint.interval_seconds": 0}).experiment
    whole = run(experiment, tmp_path / "whole")
    run(experiment, tmp_path / "run", should_stop=after(2))
    equal(resume(tmp_path / "run"), whole)
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
