"""Environments that a process registers by name."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

import jaxddpg as jd
from jaxddpg import config
from jaxddpg.config import ConfigError
from jaxddpg.envs import registry


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    registry.REGISTERED.clear()


def cart(push=1.0):
    def reset(key):
        return jax.random.uniform(key, (1,))

    def step(key, state, action):
        return state + 0.1 * push * action, -(state[0] ** 2), jnp.bool_(False)

    return jd.episodic(reset, step, lambda state: state, observation_size=1, action_size=1, episode_length=7)


def experiment(name, **parameters):
    return tiny(environment={"name": name, "parameters": parameters}, population={"num_seeds": 1})


@pytest.mark.parametrize("made", [cart, cart()], ids=["function", "object"])
def test_what_is_registered_trains_is_resumed_and_evaluated(made, tmp_path):
    jd.register("cart", made)
    whole = jd.run(experiment("cart"), tmp_path / "whole")
    assert whole.summary["environment"] == "cart"
    jd.run(experiment("cart"), tmp_path / "run", should_stop=lambda: True)
    resumed = jd.resume(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed.agents, whole.agents)
    assert len(jd.evaluate(tmp_path / "run", 2)) == 1
    assert jd.load_policy(tmp_path / "run")([0.5]).shape == (1,)


def test_a_registered_function_is_given_the_parameters():
    jd.register("cart", cart)
    made = jd.make_environment(experiment("cart", push=3.0).environment)
    state, _ = made.reset(jax.random.key(0))
    after, _ = made.step(jax.random.key(1), state, jnp.ones(1))
    assert jax.tree.leaves(after)[0] - jax.tree.leaves(state)[0] == pytest.approx(0.3)


def test_an_environment_for_gymnax_is_adapted():
    jd.register("mine", gymnax.make("Pendulum-v1")[0])
    assert jd.make_environment(experiment("mine").environment).observation_size == 3


def test_an_object_takes_no_parameters():
    jd.register("cart", cart())
    with pytest.raises(ConfigError, match="registered as an instance, which takes no parameters"):
        jd.make_environment(experiment("cart", push=3.0).environment)


def test_the_last_registration_holds():
    """Even where the first has been compiled."""
    found = []
    for push in (1.0, 5.0):
        jd.register("cart", cart(push))
        found.append(jd.run(experiment("cart")).rows[-1]["eval/return_mean"])
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["tasks:cart", "Pendulum-v1", "CartPole-v1"])
def test_a_name_that_stands_for_something_else_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot be registered as {name}.*choose another name"):
        jd.register(name, cart)


def test_an_unknown_name_is_answered_with_what_is_registered():
    jd.register("my_cart", cart)
    with pytest.raises(ConfigError, match="did you mean my_cart"):
        config.parse({"environment": {"name": "mycart"}})
    registry.REGISTERED.clear()
    with pytest.raises(ConfigError, match=r"is given a name by jaxddpg\.register in the Python process"):
        config.parse({"environment": {"name": "my_cart"}})


def test_only_an_environment_with_a_name_can_be_registered():
    with pytest.raises(TypeError, match="an environment cannot be 3"):
        jd.register("three", 3)
    with pytest.raises(ValueError, match="with an empty name"):
        jd.register("", cart)
    assert not registry.REGISTERED
