"""Environments of one's own that miss the contract, each refused or doubted in one sentence."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment as Gymnax
from gymnax.environments.environment import EnvParams, EnvState
from helpers import TINY, call, refused, tiny

from jaxddpg import config, settings
from jaxddpg.config import ConfigError
from jaxddpg.config.environment import check_environment
from jaxddpg.envs.episodic import episodic
from jaxddpg.runs import checkpoint
from jaxddpg.runs.run import RunError
from jaxddpg.runs.start import resume, run
from jaxddpg.types import Environment, TimeStep


@struct.dataclass
class Params(EnvParams):
    max_steps_in_episode: int = 20


class Cart(Gymnax):
    """Moves by its action. `done` says when it ends, `observe` and `space` what is seen of it."""

    def __init__(self, done=None, observe=None, space=None, params=None, counting=True):
        super().__init__()
        self.done, self.observe_ = done or (lambda time, params: False), observe or (lambda place: place[None])
        self.space, self.params, self.counting = space or spaces.Box(-9.0, 9.0, (1,)), params or Params(), counting

    @property
    def default_params(self):
        return self.params

    def reset_env(self, key, params):
        state = Placed(0, jax.random.uniform(key))
        return self.observe_(state.place), state

    def step_env(self, key, state, action, params):
        state = Placed(state.time + self.counting, state.place + action[0])
        return self.observe_(state.place), state, state.place, jnp.asarray(self.done(state.time, params)), {}

    def action_space(self, params):
        return spaces.Box(-1.0, 1.0, (1,))

    def observation_space(self, params):
        return self.space


@struct.dataclass
class Placed(EnvState):
    place: jax.Array


class NoLimit(NamedTuple):
    speed: float = 1.0

    def replace(self, **changes):
        return self._replace(**changes)


def sound():
    return Cart()


def before_gymnax_1():
    return Cart(lambda time, params: time >= params.max_steps_in_episode)


def sometimes_early():
    return Cart(lambda time, params: time >= 7)


def never_ending():
    return Cart(counting=False)


def dict_observations():
    return Cart(observe=lambda place: {"place": place[None]}, space=spaces.Dict({"place": spaces.Box(-9.0, 9.0, (1,))}))


def dict_without_its_space():
    return Cart(observe=lambda place: {"place": place[None]})


def discrete_observations():
    return Cart(observe=lambda place: place.astype(int), space=spaces.Discrete(4))


def without_a_limit():
    return Cart(params=NoLimit())


def the_class():
    return Cart


def the_pair():
    return gymnax.make("Pendulum-v1")


an_instance = Cart()


def raising():
    return Cart(observe=lambda place: place[None] if place > 0 else -place[None])


def asserting():
    raise AssertionError


def leaving():
    raise SystemExit(3)


def interrupting():
    raise KeyboardInterrupt


def own(observe=lambda place: place[None], resets=True, over=lambda time: (False, time >= 20)):
    """A record of functions."""

    def reset(key):
        place = jax.random.uniform(key)
        return (place, jnp.zeros((), int)), observe(place)

    def step(key, state, action):
        place, time = state[0] + action[0], state[1] + 1
        terminated, truncated = map(jnp.asarray, over(time))
        ended = (terminated | truncated) & resets
        new, begun = reset(key)
        after = jax.tree.map(lambda a, b: jnp.where(ended, a, b), (new, begun), ((place, time), observe(place)))
        return after[0], TimeStep(after[1], observe(place), place, terminated, truncated)

    return Environment(reset, step, 1, 1, 20)


def own_sound():
    return own()


def own_dict():
    return own(observe=lambda place: {"place": place[None]})


def own_without_reset():
    return own(resets=False)


def own_before_gymnax_1():
    return own(over=lambda time: (time >= 20, False))


def own_with_both():
    return own(over=lambda time: (time >= 5, time >= 5))


def own_endless():
    return own(over=lambda time: (False, time < 0))


FAILING = {"now": True}


def calling_back():
    """What is observed comes from Python."""

    def seen(place):
        if FAILING["now"]:
            raise KeyError("no such place")
        return place

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return own(observe=lambda place: jax.pure_callback(seen, shape, place, vmap_method="sequential")[None])


def with_a_key_used_twice():
    made = own()

    def step(key, state, action):
        return made.step(key, state, action + 0 * jax.random.normal(key) + 0 * jax.random.uniform(key))

    return made._replace(step=step)


def ending_after(time=20.0):
    return own(over=lambda passed: (False, passed >= time))


def with_lists(sizes, places, names):
    assert [*map(type, sizes)] == [int, int]
    assert [*map(type, places)] == [float, float]
    assert names == {"one": [True, "1"]}
    return own(observe=lambda place: place + jnp.zeros(sizes[0]))._replace(observation_size=sizes[0])


def own_of_triples():
    return own()._replace(reset=lambda key: (jnp.zeros(()), jnp.zeros(1), {}))


def of_pythons_bools(terminated=False, episode_length=5):
    def step(key, place, action):
        return (place + action[0], place) if terminated is None else (place + action[0], place, terminated)

    return episodic(
        reset=lambda key: jax.random.uniform(key),
        step=step,
        observe=lambda place: place[None],
        observation_size=1,
        action_size=1,
        episode_length=episode_length,
    )


def of_states(before, after, **sizes):
    """An environment whose `reset` and `step` return these states."""
    return episodic(
        reset=lambda key: before,
        step=lambda key, state, action: (after, 0.0, False),
        observe=lambda state: jax.tree.leaves(state)[0],
        **{"observation_size": 2, "action_size": 1, "episode_length": 5} | sizes,
    )


def of_another_shape():
    return of_states(jnp.zeros(2), jnp.zeros(3))


def of_another_type():
    return of_states({"place": jnp.zeros(2), "time": 0}, {"place": jnp.zeros(2), "time": 0.5})


def of_another_structure():
    return of_states((jnp.zeros(2), 0), [jnp.zeros(2), 0])


def of_more_leaves():
    return of_states((jnp.zeros(2),), (jnp.zeros(2), 0.0))


def own_of_another_shape():
    made = own()
    return made._replace(step=lambda key, state, action: (jnp.zeros(3), made.step(key, state, action)[1]))


def of_other_observations():
    return of_states(jnp.zeros(2), jnp.zeros(2), observation_size=3)


def of_whole_observations():
    return of_states(jnp.zeros(2, int), jnp.zeros(2, int))


def checked(factory, **parameters):
    check_environment(settings.Environment(f"{__name__}:{factory}", parameters))


def line_of(text):
    """Where a text stands first in this file."""
    return next(number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def foreign():
    return probes.foreign()


def foreign_of_fresh_tables():
    """An array that is part of the structure cannot be compared with another one."""
    made = probes.foreign()

    def step(key, state, action):
        (state, time), after = made.step(key, state, action)
        return (state.replace(table=state.table.copy()), time), after

    return made._replace(step=step)


def longer_than_is_tried():
    return of_pythons_bools(episode_length=1_500)


def terminating_with_a_number():
    return of_pythons_bools(terminated=0.0)


def terminating_twice():
    return of_pythons_bools(terminated=np.array([False, True]))


def branching():
    def step(key, state, action):
        return state, 1.0 if state[0] > 0 else 0.0, False

    return episodic(
        lambda key: jnp.zeros(1), step, lambda state: state, observation_size=1, action_size=1, episode_length=5
    )


def without_end():
    return of_pythons_bools(episode_length=10**9)


def moving_with_two_values():
    return of_pythons_bools(terminated=None)


@pytest.mark.parametrize(
    "factory", ["sound", "sometimes_early", "own_sound", "of_pythons_bools", "longer_than_is_tried", "foreign"]
)
def test_what_keeps_the_contract_is_accepted_in_silence(factory):
    checked(factory)


@pytest.mark.parametrize(
    ("factory", "fragment"),
    [
        (
            "never_ending",
            "does not end its episodes after episode_length = 20 steps; count the steps and return truncated=True at",
        ),
        ("own_endless", "does not end its episodes after episode_length = 20 steps"),
        (
            "own_without_reset",
            "returns the same observation and final_observation when an episode ends",
        ),
        (
            "dict_observations",
            "has the observation space Dict, but networks take a single numeric array; return one array",
        ),
        ("discrete_observations", "has the observation space Discrete, but networks take a single numeric array"),
        ("dict_without_its_space", "Cart returns dict observations, but must return a single numeric array"),
        (
            "own_dict",
            "returns reset's observation and observation and final_observation as a dict, but must return float32[1]",
        ),
        (
            "of_another_shape",
            "step returns a state with float32[3], where that of reset has float32[2]; return the same structure, "
            "shapes and dtypes from both",
        ),
        ("of_another_type", "with ['time'] float32[], where that of reset has ['time'] int32[]; return the same"),
        ("of_another_structure", "with PyTreeDef([*, *]), where that of reset has PyTreeDef((*, *)); return the same"),
        ("of_more_leaves", "with [1] float32[], where that of reset has nothing; return the same"),
        (
            "own_of_another_shape",
            "step returns a state with float32[3], where that of reset has [0] float32[], [1] int",
        ),
        ("of_other_observations", "observe must return float32[3], not float32[2]"),
        ("of_whole_observations", "observe must return float32[2], not int32[2]"),
        ("foreign_of_fresh_tables", "Make sure that metadata fields are hashable"),
        ("terminating_with_a_number", "step must return bool[] as terminated, not float32[]"),
        ("terminating_twice", "step must return bool[] as terminated, not bool[2]"),
        ("branching", "boolean conversion of traced array with shape bool[]. Use jnp.where or jax.lax.cond instead"),
        ("without_end", "has episode_length 1000000000, but it must be at least 1 and at most 100000000, because"),
        ("moving_with_two_values", "step must return a state, a reward and whether the task terminated"),
        ("own_of_triples", "reset must return a state and an observation, not 3 values"),
        (
            "without_a_limit",
            "Cart has no parameter max_steps_in_episode, the steps after which an episode is truncated",
        ),
        ("the_class", "its factory returned the class Cart; return an instance, Cart()"),
        ("the_pair", "its factory returned a tuple, as gymnax.make does; return the environment alone"),
        ("an_instance", "an_instance has the type Cart, but must be a function that returns one"),
    ],
)
def test_what_misses_the_contract_is_refused_in_a_sentence_that_says_what_to_do(factory, fragment):
    with pytest.raises(ConfigError) as error:
        checked(factory)
    (sentence,) = error.value.errors
    assert sentence.startswith(f"environment {__name__}:{factory} ")
    assert fragment in sentence


@pytest.mark.parametrize("factory", ["before_gymnax_1", "own_before_gymnax_1", "own_with_both"])
def test_a_time_limit_that_is_returned_as_a_termination_is_doubted(factory):
    sentence = f"environment {__name__}:{factory} returns terminated at its time limit of .* steps; return truncated at"
    with pytest.warns(UserWarning, match=sentence):
        checked(factory)


@pytest.mark.parametrize(
    ("factory", "line", "message"),
    [
        ("raising", "if place > 0 else", "TracerBoolConversionError: Attempted boolean conversion"),
        ("asserting", "raise AssertionError", "AssertionError: raise AssertionError in asserting"),
        ("leaving", "raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_an_error_of_the_users_code_names_its_file_and_line(factory, line, message, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(ConfigError) as error:
        checked(factory)
    (fault,) = error.value.errors
    assert f": test_trial.py line {line_of(line)}: {message}" in fault


def test_an_error_in_a_callback_names_its_line(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(ConfigError) as error:
        checked("calling_back")
    (fault,) = error.value.errors
    assert f"line {line_of('raise KeyError')}, in seen: KeyError: 'no such place'" in fault


def test_a_callback_that_fails_in_an_evaluation_ends_the_command_in_a_sentence(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.setitem(FAILING, "now", False)
    run(tiny(environment={"name": f"{__name__}:calling_back", "parameters": {}}), tmp_path / "run")
    monkeypatch.setitem(FAILING, "now", True)
    code, out, err = call("evaluate", tmp_path / "run", "--num-episodes", "2")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: the environment failed in a callback: ")
    assert f"line {line_of('raise KeyError')}, in seen: KeyError: 'no such place'" in err
    assert caplog.text == ""


def test_an_interruption_raised_by_a_factory_is_no_traceback(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"environment: {{name: '{__name__}:interrupting'}}\n" + TINY.split("\n", 2)[2])
    said = call("train", path, "--quiet", "--run-dir", tmp_path / "run")
    assert said == (130, "", "error: interrupted\n")


def test_a_callback_that_fails_in_a_run_ends_it_in_a_sentence_and_what_was_saved_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.setitem(FAILING, "now", False)
    experiment = tiny(
        environment={"name": f"{__name__}:calling_back", "parameters": {}}, checkpoint={"interval_seconds": 0}
    )
    with pytest.raises(RunError) as error:
        run(experiment, tmp_path / "run", should_stop=lambda: FAILING.update(now=True))
    assert str(error.value).startswith("the environment failed in a callback: ")
    assert f"line {line_of('raise KeyError')}, in seen: KeyError: 'no such place'" in str(error.value)
    monkeypatch.setitem(FAILING, "now", False)
    assert checkpoint.epochs(tmp_path / "run") == [0]
    assert resume(tmp_path / "run").summary["epochs"] == experiment.training.num_epochs


def test_a_key_that_is_used_twice_is_named(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(config.dump(tiny(environment={"name": f"{__name__}:with_a_key_used_twice", "parameters": {}})))
    said = call("train", path, "--debug", "--quiet", "--run-dir", tmp_path / "run")
    assert refused(said, "with_a_key_used_twice cannot be traced by JAX: KeyReuseError") == []


def test_each_variant_is_tried_with_its_own_numbers():
    """They are tried by one program, as their numbers are traced."""
    checked("ending_after", time=20.0)
    with pytest.raises(ConfigError, match="does not end its episodes after episode_length = 20 steps"):
        checked("ending_after", time=30.0)
    checked("ending_after", time=7.0)


def test_lists_and_mappings_arrive_as_they_were_given(tmp_path):
    parameters = {"sizes": [3, 2], "places": [0.5, 1.0], "names": {"one": [True, "1"]}}
    checked("with_lists", **parameters)
    made = run(tiny(environment={"name": f"{__name__}:with_lists", "parameters": parameters}))
    assert np.isfinite(made.rows[-1]["eval/return_mean"])


def test_an_error_while_a_module_is_imported_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import jax\n\nraise KeyError\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"used: broken_module.py line 3: KeyError: raise KeyError in <module>$"):
        check_environment(settings.Environment("broken_module:make"))


def test_known_environments_are_not_tried(monkeypatch):
    monkeypatch.setattr("jaxddpg.config.trial.play", lambda environment: pytest.fail("played"))
    with warnings.catch_warnings(action="error"):
        check_environment(config.parse({}).experiment.environment)


def test_a_bool_of_pythons_is_a_termination():
    environment = of_pythons_bools()
    state, _ = environment.reset(jax.random.key(0))
    _, time_step = environment.step(jax.random.key(1), state, np.zeros(1))
    assert (time_step.truncated.dtype, time_step.terminated.dtype) == (bool, bool)


@pytest.mark.slow
def test_after_a_callback_that_failed_the_sentence_is_the_last_that_is_shown(tmp_path):
    """JAX raises the error again when the process exits."""
    (tmp_path / "tasks.py").write_text(
        "import jax, jax.numpy as jnp, numpy as np, jaxddpg as jd\n"
        "calls = []\n"
        "def cart():\n"
        "    def fail(x):\n"
        "        calls.append(x)\n"
        "        if len(calls) > 300: raise RuntimeError('boom')\n"
        "        return np.float32(0)\n"
        "    def step(key, state, action):\n"
        "        shape = jax.ShapeDtypeStruct((), jnp.float32)\n"
        "        reward = jax.pure_callback(fail, shape, state[0], vmap_method='sequential')\n"
        "        return state, reward, jnp.bool_(False)\n"
        "    start = lambda key: jax.random.uniform(key, (2,))\n"
        "    return jd.episodic(start, step, lambda s: s, observation_size=2, action_size=1, episode_length=20)\n"
    )
    (tmp_path / "tiny.yaml").write_text("environment: {name: 'tasks:cart'}\n" + TINY.split("\n", 2)[2])
    command = [sys.executable, "-m", "jaxddpg", "train", "tiny.yaml", "--training.steps_per_epoch", "1000", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the environment failed in a callback: ")
