import os
import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams, EnvState

from jaxddpg import config, settings, types
from jaxddpg.config import ConfigError
from jaxddpg.config.environment import make_environment
from jaxddpg.envs import registry as known
from jaxddpg.envs.gymnax import from_gymnax

CONTINUOUS = {name: entry for name, entry in known.CONTINUOUS.items() if not entry.factory}

KEY = jax.random.key(0)


@struct.dataclass
class EchoParams(EnvParams):
    max_steps_in_episode: int = 3
    ends_at: int = 99
    reward: float = 1.0


@struct.dataclass
class EchoState(EnvState):
    action: jax.Array


class Echo(Environment):
    """Shows the action that it was given and the time; its action Box is what it is told."""

    def __init__(self, low=-1.0, high=1.0, shape=(1,)):
        super().__init__()
        self.space = spaces.Box(low, high, shape, jnp.float32)

    @property
    def default_params(self):
        return EchoParams()

    def reset_env(self, key, params):
        state = EchoState(time=0, action=jnp.zeros(self.space.shape))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        state = EchoState(time=state.time + 1, action=action)
        return self.get_obs(state), state, params.reward, state.time >= params.ends_at, {}

    def get_obs(self, state, params=None, key=None):
        return jnp.append(state.action.ravel(), state.time)

    def action_space(self, params):
        return self.space

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (self.space.shape[0] + 1,), jnp.float32)


class Discrete(Echo):
    def action_space(self, params):
        return spaces.Discrete(3)


def own(low=-1.0, high=1.0):
    """A factory as a config can name it."""
    return Echo(low, high)


def own_record(low=-1.0, high=1.0):
    return from_gymnax(Echo(low, high))


def boundless():
    return Echo(-np.inf, np.inf)


def discrete():
    return Discrete()


@pytest.fixture
def registered():
    """The name of an environment that the user has registered with gymnax."""
    gymnax.register("Echo-test", lambda: Echo(-3.0, 5.0))
    yield "Echo-test"
    gymnax.registered_envs.remove("Echo-test")
    gymnax.registration._registry.pop("Echo-test")


def executed(environment, action):
    """What reaches the environment, in its own units."""
    state, _ = environment.reset(KEY)
    _, time_step = environment.step(KEY, state, jnp.asarray(action, jnp.float32))
    return np.asarray(time_step.final_observation[:-1])


def named(name, **parameters):
    return make_environment(settings.Environment(name, parameters))


def test_known_and_discrete_environments_are_all_that_gymnax_has():
    assert {*CONTINUOUS, *known.DISCRETE} == set(gymnax.registered_envs)
    assert not set(CONTINUOUS) & set(known.DISCRETE)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_known_parameters_are_gymnaxs(name):
    _, params = gymnax.make(name)
    assert {parameter: type(value) for parameter, value in vars(params).items()} == CONTINUOUS[name].parameters


@pytest.mark.parametrize("name", [name for name in known.DISCRETE if name != "MNISTBandit-bsuite"])
def test_discrete_environments_are_discrete(name):
    environment, params = gymnax.make(name)
    assert isinstance(environment.action_space(params), spaces.Discrete)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "Pendulum-v1" else pytest.mark.slow) for name in CONTINUOUS]
)
def test_known_random_returns_are_those_of_random_actions(name):
    environment, episodes = from_gymnax(name), 256

    def step(carry, key):
        states, running, returns = carry
        actions = jax.random.uniform(key, (episodes, environment.action_size), minval=-1, maxval=1)
        states, time_step = jax.vmap(environment.step)(jax.random.split(key, episodes), states, actions)
        returns += running * time_step.reward
        return (states, running * ~(time_step.terminated | time_step.truncated), returns), None

    @jax.jit
    def play():
        states, _ = jax.vmap(environment.reset)(jax.random.split(KEY, episodes))
        keys = jax.random.split(jax.random.key(1), environment.episode_length)
        return jax.lax.scan(step, (states, jnp.ones(episodes), jnp.zeros(episodes)), keys)[0][2]

    returns = np.asarray(play())
    error = float(returns.std()) / episodes**0.5
    assert CONTINUOUS[name].random_return == pytest.approx(returns.mean(), abs=4 * error + 0.05)


@pytest.mark.parametrize(
    ("low", "high", "shape"),
    [
        (-2.0, 2.0, (1,)),
        (-0.1, 0.7, (1,)),
        (1.1, 1.3, (2,)),
        (np.array([-0.3, 0.1, -1e-3]), np.array([0.9, 1e4, 1 / 3]), (3,)),
    ],
)
def test_the_ends_of_an_action_are_exactly_the_ends_of_the_box(low, high, shape):
    environment = from_gymnax(Echo(low, high, shape))
    np.testing.assert_array_equal(executed(environment, np.full(shape, -1)), np.float32(np.broadcast_to(low, shape)))
    np.testing.assert_array_equal(executed(environment, np.full(shape, 1)), np.float32(np.broadcast_to(high, shape)))


def test_no_action_in_between_leaves_the_box():
    low, high = np.float32([-0.3, 0.1, -1e-3]), np.float32([0.9, 1e4, 1 / 3])
    environment = from_gymnax(Echo(low, high, (3,)))
    actions = jnp.linspace(-1, 1, 999)[:, None] * jnp.ones(3)
    state, _ = environment.reset(KEY)
    seen = jax.vmap(lambda action: environment.step(KEY, state, action)[1].final_observation[:-1])(actions)
    assert np.all((np.asarray(seen) >= low) & (np.asarray(seen) <= high))


def test_an_action_in_between_is_rescaled_linearly():
    environment = from_gymnax(Echo(np.array([-1.0, 0.0]), np.array([3.0, 10.0]), (2,)))
    np.testing.assert_allclose(executed(environment, [0.5, -0.5]), [2.0, 2.5], rtol=1e-6)


def test_the_record_says_what_the_ends_mean():
    environment = from_gymnax(Echo(np.array([-1.0, 0.0]), np.array([3.0, 10.0]), (2,)))
    np.testing.assert_array_equal([environment.action_low, environment.action_high], [[-1, 0], [3, 10]])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "MountainCarContinuous-v0" else pytest.mark.slow) for name in CONTINUOUS],
)
def test_actions_beyond_the_box_are_clipped(name):
    """Reacher and Swimmer do not clip by themselves, and MountainCarContinuous charges what it clips away."""
    environment = from_gymnax(name)
    state, _ = environment.reset(KEY)
    for sign in (-1.0, 1.0):
        beyond, at_the_end = (
            environment.step(KEY, state, jnp.full(environment.action_size, sign * size)) for size in (7.0, 1.0)
        )
        jax.tree.map(np.testing.assert_array_equal, beyond, at_the_end)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_sizes_are_those_of_the_observation(name):
    environment = from_gymnax(name)
    _, observation = environment.reset(KEY)
    assert observation.shape == (environment.observation_size,)
    assert environment.episode_length == gymnax.make(name)[1].max_steps_in_episode


def test_a_time_limit_truncates_and_leaves_the_true_successor():
    environment = from_gymnax(Echo())
    state, _ = environment.reset(KEY)
    for _ in range(3):
        state, time_step = environment.step(KEY, state, jnp.full(1, 0.5))
    assert (bool(time_step.terminated), bool(time_step.truncated)) == (False, True)
    np.testing.assert_array_equal(time_step.final_observation, [0.5, 3])
    np.testing.assert_array_equal(time_step.observation, [0, 0])
    assert state.time == 0


def test_a_termination_terminates_and_leaves_the_true_successor():
    environment = from_gymnax(Echo(), {"ends_at": 1})
    state, time_step = environment.step(KEY, environment.reset(KEY)[0], jnp.full(1, 0.5))
    assert (bool(time_step.terminated), bool(time_step.truncated)) == (True, False)
    np.testing.assert_array_equal(time_step.final_observation, [0.5, 1])
    np.testing.assert_array_equal(time_step.observation, [0, 0])
    assert state.time == 0


def test_within_an_episode_both_observations_are_the_same():
    environment = from_gymnax(Echo())
    _, time_step = environment.step(KEY, environment.reset(KEY)[0], jnp.full(1, 0.5))
    np.testing.assert_array_equal(time_step.observation, [0.5, 1])
    np.testing.assert_array_equal(time_step.final_observation, [0.5, 1])


@pytest.mark.parametrize("make", [*CONTINUOUS, Echo()], ids=[*CONTINUOUS, "Echo"])
def test_a_state_keeps_its_strong_types(make):
    """A weak type would change in the first step, and a compiled loop would be traced twice."""
    environment = from_gymnax(make)
    state, observation = jax.eval_shape(environment.reset, KEY)
    after, time_step = jax.eval_shape(environment.step, KEY, state, jnp.zeros(environment.action_size))
    leaves = jax.tree.leaves((state, observation, after, time_step))
    assert not any(leaf.weak_type for leaf in leaves)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_time_step_has_the_declared_types(name):
    environment = from_gymnax(name)
    state, _ = jax.eval_shape(environment.reset, KEY)
    _, time_step = jax.eval_shape(environment.step, KEY, state, jnp.zeros(environment.action_size))
    assert [(leaf.shape, leaf.dtype) for leaf in (time_step.reward, time_step.terminated, time_step.truncated)] == [
        ((), np.float32),
        ((), np.bool_),
        ((), np.bool_),
    ]
    assert time_step.final_observation.dtype == np.float32


def test_the_pendulum_is_gymnasiums():
    """The equations of gymnasium's Pendulum-v1, one step from many states."""
    environment, count = from_gymnax("Pendulum-v1"), 200
    state, before = jax.vmap(environment.reset)(jax.random.split(KEY, count))
    action = np.linspace(-1.5, 1.5, count, dtype=np.float32)
    _, time_step = jax.vmap(environment.step)(jax.random.split(KEY, count), state, action[:, None])

    before = np.asarray(before, np.float64)
    angle, speed, torque = np.arctan2(before[:, 1], before[:, 0]), before[:, 2], np.clip(2.0 * action, -2, 2)
    reward = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)
    speed = np.clip(speed + (3 * 10.0 / 2 * np.sin(angle) + 3.0 * torque) * 0.05, -8, 8)
    angle = angle + speed * 0.05
    after = np.stack([np.cos(angle), np.sin(angle), speed], -1)
    np.testing.assert_allclose(time_step.final_observation, after, atol=1e-5)
    np.testing.assert_allclose(time_step.reward, reward, rtol=1e-5, atol=1e-5)


def test_the_wall_of_the_mountain_car_is_not_gymnasiums():
    """There the velocity becomes 0 at the left wall; gymnax lets the car go on pushing. Fails once gymnax mends it."""
    environment = from_gymnax("MountainCarContinuous-v0", {"min_position": -0.61})
    state, _ = environment.reset(KEY)
    _, steps = jax.lax.scan(
        lambda state, key: environment.step(key, state, -jnp.ones(1)), state, jax.random.split(KEY, 60)
    )
    position, velocity = np.asarray(steps.final_observation).T
    at_the_wall = position == np.float32(-0.61)
    assert at_the_wall.any()
    assert (velocity[at_the_wall] < 0).any()


def test_parameters_replace_the_defaults():
    environment = from_gymnax("Pendulum-v1", {"max_torque": 5.0, "max_steps_in_episode": 7})
    assert (float(environment.action_low[0]), float(environment.action_high[0])) == (-5.0, 5.0)
    assert environment.episode_length == 7


def test_parameters_may_be_traced():
    @jax.jit
    def speed(parameters):
        environment = from_gymnax("Pendulum-v1", parameters)
        return environment.step(KEY, environment.reset(KEY)[0], jnp.ones(1))[1].final_observation[2]

    for g, max_torque in ((10.0, 2.0), (3.0, 0.5)):
        environment = from_gymnax("Pendulum-v1", {"g": g, "max_torque": max_torque})
        concrete = environment.step(KEY, environment.reset(KEY)[0], jnp.ones(1))[1].final_observation[2]
        np.testing.assert_allclose(speed({"g": g, "max_torque": max_torque}), concrete, rtol=1e-6)
    assert speed._cache_size() == 1


def test_an_unknown_parameter_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"no parameter speed; it has .*max_steps_in_episode.*ends_at"):
        from_gymnax(Echo(), {"speed": 1.0})


@pytest.mark.parametrize(
    ("environment", "parameters", "message"),
    [
        (Echo(-np.inf, np.inf), {}, r"Echo has an unbounded action Box.*needs finite bounds"),
        (Echo(-1.0, np.float32(3e38)), {}, r"Echo has an unbounded action Box"),
        (Echo(np.array([-1.0, 2.0]), np.array([1.0, 1.0]), (2,)), {}, r"Echo has a reversed action Box.*below high"),
        (Echo(0.5, 0.5), {}, r"reversed action Box"),
        (Echo(-1.0, np.nan), {}, r"action Box"),
        ("Pendulum-v1", {"max_torque": -1.0}, r"Pendulum-v1 has a reversed action Box: low \[1\.\]"),
        (Discrete(), {}, r"Discrete has the action space Discrete, but .* needs a continuous Box"),
        ("CartPole-v1", {}, r"CartPole-v1 has the action space Discrete"),
    ],
)
def test_an_action_space_that_cannot_be_scaled_is_refused(environment, parameters, message):
    with pytest.raises(ValueError, match=message):
        from_gymnax(environment, parameters)


def test_a_scan_of_many_episodes_runs_as_one_program():
    environment = from_gymnax(Echo())

    def step(state, key):
        state, time_step = environment.step(key, state, jnp.ones(1))
        return state, time_step.truncated

    _, truncated = jax.lax.scan(step, environment.reset(KEY)[0], jax.random.split(KEY, 9))
    np.testing.assert_array_equal(truncated, [False, False, True] * 3)


@pytest.mark.parametrize("factory", ["own", "own_record"])
def test_ones_own_environment_is_named_by_module_and_factory(factory):
    environment = named(f"{__name__}:{factory}", low=-2.0, high=6.0)
    assert isinstance(environment, types.Environment)
    np.testing.assert_array_equal(executed(environment, [1.0]), [6.0])


def test_an_environment_registered_with_gymnax_is_named_like_its_own(registered):
    section = config.parse({"environment": {"name": registered, "parameters": {"reward": 2}}}).experiment.environment
    environment = make_environment(section)
    _, time_step = environment.step(KEY, environment.reset(KEY)[0], jnp.ones(1))
    assert (float(environment.action_high[0]), float(time_step.reward)) == (5.0, 2.0)


def test_an_unregistered_environment_is_unknown():
    with pytest.raises(ConfigError, match="Echo-test, which is neither a gymnax nor a built-in environment"):
        config.parse({"environment": {"name": "Echo-test"}})


@pytest.mark.parametrize(
    ("name", "parameters", "fragment"),
    [
        ("no_such_module:make", {}, "there is no module no_such_module; "),
        (f"{__name__}:nothing", {}, "there is no function nothing in test_from_gymnax; the module has "),
        (f"{__name__}:own", {"width": 1.0}, "own has no parameter width; it has low, high"),
        (f"{__name__}:named", {}, "missing 1 required positional argument: 'name'"),
        (f"{__name__}:boundless", {}, "needs finite bounds"),
        (f"{__name__}:discrete", {}, "needs a continuous Box"),
        ("os:getpid", {}, "an Environment or a gymnax environment"),
    ],
)
def test_a_factory_that_cannot_be_used_is_one_clear_fault(name, parameters, fragment):
    with pytest.raises(ConfigError) as error:
        named(name, **parameters)
    (fault,) = error.value.errors
    assert fault.startswith(f"environment {name} cannot be used: ")
    assert fragment in fault


def test_libraries_for_drawing_are_imported_when_they_are_used():
    """By gymnax or by others; seaborn with pandas and scipy.stats takes as long as the rest of gymnax."""
    program = """
import sys
from jaxddpg import from_gymnax
from_gymnax("Pendulum-v1")
assert not {"seaborn", "pandas", "scipy.stats", "matplotlib.pyplot", "matplotlib.figure"} & {*sys.modules}
from gymnax.environments.misc import pong
assert pong.plt.Figure
import matplotlib.pyplot
assert matplotlib.pyplot.subplots is pong.plt.subplots
assert len(pong.sns.color_palette("cubehelix", 3)) == 3
import seaborn.relational
assert seaborn.color_palette is pong.sns.color_palette
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_seaborn_may_be_used_while_gymnax_is_imported(tmp_path):
    (tmp_path / "gymnax.py").write_text("import seaborn\ncolors = seaborn.color_palette('cubehelix', 3)\n")
    program = """
import sys
from jaxddpg.envs import gymnax
assert len(gymnax._import_gymnax().colors) == 3
assert sys.modules["seaborn"].color_palette
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_a_seaborn_that_is_imported_stays():
    program = """
import sys, seaborn
from jaxddpg import from_gymnax
from_gymnax("Pendulum-v1")
from gymnax.environments.misc import pong
assert pong.sns is seaborn is sys.modules["seaborn"]
"""
    subprocess.run([sys.executable, "-c", program], check=True)
