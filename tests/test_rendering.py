import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import call
from matplotlib.artist import Artist
from PIL import Image

from jaxddpg import config, settings
from jaxddpg.config import ConfigError
from jaxddpg.config.environment import make_environment
from jaxddpg.envs import registry
from jaxddpg.envs.episodic import episodic
from jaxddpg.envs.registry import CONTINUOUS
from jaxddpg.report import animation, scenes
from jaxddpg.report.scenes import SCENES, Rollout
from jaxddpg.runs import show
from jaxddpg.runs.load import load_policy, render
from jaxddpg.runs.start import run
from jaxddpg.types import Environment, TimeStep, rescale

GENERIC = "somebody.elses:environment"
TITLE = 30  # rows of pixels


@functools.cache
def played(name, steps=12, **parameters):
    """An episode of uniformly random actions, cut after so many steps."""
    environment = make_environment(settings.Environment(name, parameters))

    def step(state, key):
        act_key, step_key = jax.random.split(key)
        action = jax.random.uniform(act_key, (environment.action_size,), minval=-1.0)
        state, after = environment.step(step_key, state, action)
        return state, (after, rescale(action, environment.action_low, environment.action_high))

    state, start = environment.reset(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), min(steps, environment.episode_length))
    _, (after, actions) = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
    over = np.asarray(after.terminated | after.truncated)
    length = over.argmax() + 1 if over.any() else len(over)
    observations = np.concatenate([start[None], after.final_observation])[: length + 1]
    return Rollout(name, observations, np.asarray(actions)[:length], np.asarray(after.reward)[:length], parameters)


def example(name):
    return played("Reacher-misc")._replace(environment=name) if name == GENERIC else played(name)


def made(name, observations, actions=None, rewards=None, **parameters):
    """An episode that shows these observations; all else is 0 where it is not given."""
    steps = len(observations) - 1
    actions = np.zeros((steps, 1)) if actions is None else np.array(actions, float)
    rewards = np.zeros(steps) if rewards is None else np.array(rewards, float)
    return Rollout(name, np.array(observations, float), actions, rewards, parameters)


def shown(rollout, step):
    """The drawing at a step: label -> artist."""
    figure, show = animation.scene(rollout)
    show(step)
    artists = [artist for axes in figure.axes for artist in [*axes.get_children(), *axes.containers]]
    return {artist.get_label(): artist for artist in artists}


def images(path):
    """The frames of a GIF [frames, height, width, 3] and how long each one stays."""
    with Image.open(path) as gif:
        frames, durations = [], []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
    return np.stack(frames), durations


FEW = ("Pendulum-v1", "PuddleWorld-silver", GENERIC)
NAMES = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in CONTINUOUS if name not in FEW)]


def drawn(rollout, tmp_path):
    animation.draw(rollout, tmp_path / "rollout.gif")
    return images(tmp_path / "rollout.gif")[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_environment_moves_in_its_animation(name, tmp_path):
    rollout = example(name)
    frames = drawn(rollout, tmp_path)
    assert len(frames) == len(rollout.rewards) + 1
    assert all(frame[TITLE:].std() > 5.0 for frame in frames)
    assert all(np.any(a[TITLE:] != b[TITLE:]) for a, b in itertools.pairwise(frames))
    assert (tmp_path / "rollout.gif").stat().st_size < 500_000


@pytest.mark.parametrize("name", FEW)
def test_the_last_frame_is_the_whole_drawing_of_the_last_step(name, tmp_path):
    """Nothing of an earlier step stays in it, and nothing that moves is missing."""
    rollout = example(name)
    figure, show = animation.scene(rollout)
    show(len(rollout.rewards))
    for artist in figure.findobj(Artist.get_animated):
        artist.set_animated(False)
    figure.savefig(tmp_path / "whole.png")
    with Image.open(tmp_path / "whole.png") as image:
        whole = np.asarray(image.convert("RGB")).astype(float)
    distance = np.abs(drawn(rollout, tmp_path)[-1] - whole)
    # A GIF has 256 colors, and what moves is drawn over what does not.
    assert distance.mean() < 0.5
    assert np.sum(distance.max(axis=-1) > 30) <= 50


@pytest.mark.parametrize("name", FEW)
def test_a_diverged_policy_can_be_drawn(name, tmp_path):
    rollout = example(name)
    observations, actions, rewards = (np.full_like(values, np.nan) for values in rollout[1:4])
    observations[0] = rollout.observations[0]
    assert drawn(Rollout(name, observations, actions, rewards), tmp_path)[-1].std() > 1.0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [0, 1]), (149, range(150)), (298, range(0, 299, 2))],
    ids=["one step", "just not thinned", "every other step"],
)
def test_frames_are_evenly_spread(steps, expected):
    assert scenes.frames(steps) == list(expected)


def test_a_long_episode_is_thinned_but_not_its_return(tmp_path, monkeypatch):
    rollout = made("MountainCar-silver", np.linspace([-1, 0], [0, 0], 5001), np.zeros((5000, 1)), np.full(5000, -1))
    steps = scenes.frames(5000)
    assert (len(steps), steps[0], steps[-1]) == (150, 0, 5000)
    assert set(np.diff(steps)) == {33, 34}
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "MAX_FRAMES", 15)
        assert len(drawn(rollout, tmp_path)) == 15
    figure, show = animation.scene(rollout)
    show(4966)
    assert figure.get_suptitle() == "step 4966, return -4966"


def test_the_title_has_the_return_up_to_the_step():
    figure, show = animation.scene(made("Pendulum-silver", np.zeros((4, 2)), rewards=[0.5, -2.0, 4.25]))
    titles = []
    for step in range(4):
        show(step)
        titles.append(figure.get_suptitle())
    assert titles == ["step 0, return 0", "step 1, return 0.5", "step 2, return -1.5", "step 3, return 2.75"]


def test_the_last_frame_is_shown_longer_and_the_animation_repeats(tmp_path):
    animation.draw(played("Pendulum-v1"), tmp_path / "rollout.gif")
    _, durations = images(tmp_path / "rollout.gif")
    assert durations == [50] * 12 + [1500]
    with Image.open(tmp_path / "rollout.gif") as gif:
        assert gif.info["loop"] == 0


@pytest.mark.parametrize(
    ("angle", "place"),
    [(0.0, (0, 1)), (np.pi / 2, (-1, 0)), (-np.pi, (0, -1)), (-np.pi / 6, (0.5, 3**0.5 / 2))],
    ids=["upright", "left", "hanging", "a little to the right"],
)
def test_the_bob_hangs_where_the_angle_says(angle, place):
    for rollout in (
        made("Pendulum-silver", [[0, 0], [angle, 3]]),
        made("Pendulum-v1", [[1, 0, 0], [np.cos(angle), np.sin(angle), 3]]),
    ):
        artists = shown(rollout, 1)
        np.testing.assert_allclose(artists["bob"].get_xydata(), [place], atol=1e-12)
        np.testing.assert_allclose(artists["rod"].get_xydata(), [(0, 0), place], atol=1e-12)


@pytest.mark.parametrize("name", ["Pendulum-v1", "Pendulum-silver"])
def test_the_arc_turns_as_the_torque_would_turn_the_bob(name):
    start = [-1, 0, 0] if name == "Pendulum-v1" else [np.pi, 0]
    for torque in (-2.0, 1.0):
        arc = shown(made(name, [start, start], [[torque]]), 1)["torque"].get_xydata()
        turned = np.unwrap(np.arctan2(arc[:, 1], arc[:, 0]))
        np.testing.assert_allclose(turned[-1] - turned[0], 0.375 * np.pi * torque)


def test_the_car_is_on_the_hill():
    artists = shown(made("MountainCar-silver", [[-0.5, 0], [0.2, 0.01]], [[-1.0]]), 1)
    np.testing.assert_allclose(artists["car"].get_xydata(), [[0.2, np.sin(0.6)]])
    np.testing.assert_allclose(artists["goal"].get_xydata()[0], [0.45, np.sin(1.35)])
    np.testing.assert_array_equal(artists["force"].get_offsets(), artists["car"].get_xydata())
    np.testing.assert_allclose([artists["force"].U[0], artists["force"].V[0]], [-0.3, 0.0])


def test_the_puddles_are_where_steps_are_expensive():
    environment = make_environment(settings.Environment("PuddleWorld-silver"))
    places = jax.random.uniform(jax.random.key(0), (2000, 2))
    _, after = jax.vmap(environment.step, in_axes=(None, 0, None))(
        jax.random.key(1), (places, jnp.zeros(2000, jnp.int32)), jnp.zeros(2)
    )
    figure, _ = animation.scene(played("PuddleWorld-silver"))
    (image,) = figure.axes[0].images
    column, row = np.minimum(np.asarray(after.final_observation) * 100, 99).astype(int).T
    # To the nearest of 100 x 100 cells, across which the density changes by up to 6.
    np.testing.assert_allclose(image.get_array()[row, column], (-1 - after.reward) / 2, atol=6)
    assert np.corrcoef(image.get_array()[row, column], after.reward)[0, 1] < -0.99
    assert (image.get_extent(), image.origin) == ([0, 1, 0, 1], "lower")


def test_the_goal_of_the_puddle_world_is_its_corner():
    artists = shown(played("PuddleWorld-silver"), 0)
    corner = artists["goal"].get_xy()
    assert np.all(np.sum(1 - corner, axis=1) < 0.1 + 1e-9)
    np.testing.assert_allclose(np.ptp(corner, axis=0), 0.1)


def test_the_path_ends_at_the_point():
    rollout = played("PuddleWorld-silver")
    artists = shown(rollout, 5)
    np.testing.assert_array_equal(artists["path"].get_xydata(), rollout.observations[:6])
    np.testing.assert_array_equal(artists["point"].get_xydata(), rollout.observations[[5]])


def test_the_rocket_is_at_its_height_with_the_fuel_that_is_left():
    observations = [[0, 0, 1], [0.1, 0.6, 0.5], [-0.1, 0.4, 0.0], [-0.2, 0.2, 0.0]]
    rollout = made("Rocket-goddard", observations, [[0.25], [1.0], [1.0]])
    for step, (height, peak, thrust) in enumerate([(0, 0, 0), (0.6, 0.6, 0.25), (0.4, 0.6, 1), (0.2, 0.6, 0)]):
        artists = shown(rollout, step)
        np.testing.assert_allclose(artists["rocket"].get_xy()[:, 1].min(), 0.015 * height, atol=1e-12)
        np.testing.assert_allclose(artists["peak so far"].get_ydata(), 0.015 * peak)
        full = artists["rocket"].axes.get_ylim()[1]
        np.testing.assert_allclose(artists["fuel left"][0].get_height(), observations[step][2] * full)
        np.testing.assert_allclose(np.ptp(artists["flame"].get_xy()[:, 1]), 0.12 * thrust * full, atol=1e-12)


def test_the_rockets_peak_is_its_reward():
    """The rocket that burns everything at once, in the environment itself."""
    environment = make_environment(settings.Environment("Rocket-goddard"))
    state, start = environment.reset(jax.random.key(0))
    step = jax.jit(environment.step)
    observations, rewards = [start], []
    while not rewards or rewards[-1] == 0:
        state, after = step(jax.random.key(0), state, jnp.ones(1))
        observations.append(after.final_observation)
        rewards.append(float(after.reward))
    rollout = made("Rocket-goddard", observations, np.ones((len(rewards), 1)), rewards)
    peak = shown(rollout, len(rewards))["peak so far"].get_ydata()[0]
    np.testing.assert_allclose(peak, rewards[-1], rtol=1e-4)


def test_the_bars_are_the_action():
    actions = np.linspace(-8, 8, 10)[None]
    rollout = made("Bandit-silver", np.zeros((2, 1)), actions)
    for step, heights in enumerate([np.zeros(10), actions[0]]):
        artists = shown(rollout, step)
        assert [bar.get_height() for bar in artists["action"]] == heights.tolist()
    environment = make_environment(settings.Environment("Bandit-silver"))
    state, _ = environment.reset(jax.random.key(0))
    (best,) = set(artists["optimum"].get_ydata())
    _, after = environment.step(jax.random.key(0), state, jnp.full(10, best / 8))
    assert float(after.reward) == 0.0


@pytest.mark.parametrize("name", [GENERIC, "Swimmer-misc"])
def test_an_environment_without_a_scene_is_drawn_as_curves(name):
    rollout = played("Swimmer-misc")._replace(environment=name)
    for step in (0, 5, 12):
        artists = shown(rollout, step)
        for number in range(16):
            line = artists[f"observation {number}"]
            np.testing.assert_array_equal(line.get_xdata(), np.arange(step + 1))
            np.testing.assert_array_equal(line.get_ydata(), rollout.observations[: step + 1, number])
        led_to = {f"action {number}": column for number, column in enumerate(rollout.actions.T)}
        for label, column in (led_to | {"reward 0": rollout.rewards}).items():
            line = artists[label]
            np.testing.assert_array_equal(line.get_xdata(), np.arange(step + 1))
            np.testing.assert_array_equal(line.get_ydata(), np.concatenate([[np.nan], column[:step]]))


def test_the_environments_with_a_scene_are_ours_and_the_pendulum():
    """But for the double integrator, of which curves say all."""
    ours = {name for name, known in CONTINUOUS.items() if known.factory}
    assert SCENES.keys() == ours - {"DoubleIntegrator"} | {"Pendulum-v1"}


def lift(end=3.0):
    """It rises by its action, in [2, 6], from somewhere in [0, 1], and ends at `end` or after 10 steps."""

    def reset(key):
        height = jax.random.uniform(key)
        return (height, jnp.int32(0)), height[None]

    def step(key, state, action):
        height, time = state
        height, time = height + rescale(action[0], 2.0, 6.0), time + 1
        terminated = height >= end
        truncated = (time == 10) & ~terminated
        after = TimeStep(height[None], height[None], height, terminated, truncated)
        fresh, observation = reset(key)
        over = terminated | truncated
        state = jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, (height, time))
        return state, after.replace(observation=jnp.where(over, observation, height[None]))

    return Environment(reset, step, 1, 1, 10, action_low=jnp.array([2.0]), action_high=jnp.array([6.0]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directories of two runs that are stopped before they learn, so of one policy: their episodes end early, and
    never."""
    directories = {name: tmp_path_factory.mktemp("rendering") / name for name in ("never", "ends")}
    stop_at_once("lift", {"end": 1e9}, directories["never"])
    stop_at_once("lift", {"end": 20.0}, directories["ends"])
    return directories


def stop_at_once(environment, parameters, directory):
    """Trains nothing in an environment of this file."""
    experiment = config.parse(
        {
            "environment": {"name": f"test_rendering:{environment}", "parameters": parameters},
            "agent": {"batch_size": 4, "actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}},
            "replay": {"capacity": 64},
            "training": {"num_envs": 2, "warmup_steps": 4, "steps_per_epoch": 6, "num_epochs": 1},
            "evaluation": {"num_episodes": 2},
            "population": {"num_seeds": 2},
        }
    ).experiment
    run(experiment, directory, should_stop=lambda: True)


@pytest.fixture
def rollouts(monkeypatch):
    """What was to be drawn."""
    caught = []
    monkeypatch.setattr(animation, "draw", lambda rollout, path: caught.append(rollout))
    return caught


@pytest.mark.parametrize("member", [0, 1])
def test_an_episode_is_that_of_the_members_policy(member, finished, rollouts, tmp_path):
    render(finished["never"], tmp_path / "a.gif", member)
    (rollout,) = rollouts
    policy = load_policy(finished["never"], member)
    np.testing.assert_allclose(rollout.actions, policy(rollout.observations[:-1]), rtol=1e-5)
    np.testing.assert_allclose(np.diff(rollout.observations, axis=0), rollout.actions, rtol=1e-4)
    np.testing.assert_array_equal(rollout.rewards, rollout.observations[1:, 0])
    assert (rollout.environment, rollout.parameters) == ("test_rendering:lift", {"end": 1e9})


def test_an_episode_is_cut_where_it_ends(finished, rollouts, tmp_path):
    render(finished["ends"], tmp_path / "a.gif")
    (rollout,) = rollouts
    heights = rollout.observations[:, 0]
    assert 4 <= len(rollout.rewards) < 10
    assert heights[-1] >= 20
    assert np.all(heights[:-1] < 20)
    assert len(heights) == len(rollout.actions) + 1 == len(rollout.rewards) + 1


def test_an_episode_that_never_ends_is_shown_up_to_its_limit(finished, rollouts, tmp_path):
    render(finished["never"], tmp_path / "a.gif")
    (rollout,) = rollouts
    assert len(rollout.rewards) == 10
    assert np.all(np.diff(rollout.observations[:, 0]) > 0)


def test_a_seed_chooses_the_episode_and_nothing_else_does(finished, rollouts, tmp_path):
    for member, seed in ((0, 0), (1, 0), (1, 0), (1, 1)):
        render(finished["never"], tmp_path / "a.gif", member, seed)
    first, other_member, again, other_seed = (rollout.observations[:, 0] for rollout in rollouts)
    np.testing.assert_array_equal(other_member, again)
    assert first[0] == other_member[0] != other_seed[0]
    assert first[1] != other_member[1]


def painted(broken=False, kind="uint8", most=100):
    """It rises by .1 in each of 10 steps, and paints its own images, as bright as it is high."""

    def paint(height):
        if broken:
            raise RuntimeError("no display\nsecond line")
        assert isinstance(height, np.ndarray)
        return np.broadcast_to(255 * height[:, None, None, None], (len(height), 8, 8, 3)).astype(kind)[:most]

    return episodic(
        lambda key: jnp.float32(0),
        lambda key, height, action: (height + 0.1, height, jnp.array(False)),
        lambda height: height[None],
        observation_size=1,
        action_size=1,
        episode_length=10,
        render=paint,
    )


def test_an_environment_can_render_itself(tmp_path):
    stop_at_once("painted", {}, tmp_path / "run")
    render(tmp_path / "run", tmp_path / "a.gif")
    pictures, _ = images(tmp_path / "a.gif")
    centers = [picture[160, 160].astype(float).mean() for picture in pictures]
    # The state after the last step is the first of the next episode, so the one before is shown twice.
    np.testing.assert_allclose(centers, 25.5 * np.minimum(np.arange(11), 9), atol=4)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"broken": True}, "no display"),
        ({"kind": "float32"}, r"render must return uint8\[11, H, W, 3\], not float32\[11, 8, 8, 3\]"),
        ({"most": 3}, r"render must return uint8\[11, H, W, 3\], not uint8\[3, 8, 8, 3\]"),
    ],
)
def test_where_an_environment_cannot_render_itself_observations_are_plotted(parameters, reason, rollouts, tmp_path):
    stop_at_once("painted", parameters, tmp_path / "run")
    with pytest.warns(UserWarning, match=rf"painted cannot be rendered \({reason}\); its observations are plotted"):
        render(tmp_path / "run", tmp_path / "a.gif")
    (rollout,) = rollouts
    assert rollout.images is None


def test_the_command_draws_into_the_run(finished):
    path = finished["never"] / "rollout.gif"
    assert call("render", finished["never"]) == (0, f"{path}\n", "")
    assert len(images(path)[0]) == 11


def test_the_command_draws_what_is_asked_for(finished, tmp_path):
    names = [tmp_path / name for name in ("a.gif", "b.GIF", "c.gif")]
    choices = [[], ["--member", "1"], ["--seed", "3"]]
    for path, choice in zip(names, choices, strict=True):
        assert call("render", finished["never"], *choice, "--output", path) == (0, f"{path}\n", "")
    assert len({path.read_bytes() for path in names}) == 3


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--member", "2"], "member is 2, but must be at least 0 and below 2"),
        (["--member", "-1"], "member is -1, but must be at least 0 and below 2"),
        (["--member", "one"], "--member"),
        (["--seed", "-1"], "--seed is -1, but must be at least 0 and below 2^31"),
        (["--seed", str(2**31)], f"--seed is {2**31}, but must be"),
        (["--output", "image.png"], "--output image.png must end in .gif"),
        (["--output", "."], "--output . must end in .gif"),
        (["--output", "nowhere/image.gif"], "--output nowhere/image.gif cannot be written: No such file"),
        (["--output", "file/image.gif"], "--output file/image.gif cannot be written: Not a directory"),
        (["--agent.tau", "1"], "--agent.tau is only accepted by `jaxddpg train`"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, fragment, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    code, out, err = call("render", finished["ends"], *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: ")
    assert fragment in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_without_a_run_is_refused(tmp_path):
    sentence = f"error: {tmp_path} is not a run directory: there is no config.yaml in it\n"
    assert call("render", tmp_path) == (2, "", sentence)


def test_a_run_without_policies_is_refused(finished, tmp_path):
    (tmp_path / "config.yaml").write_bytes((finished["ends"] / "config.yaml").read_bytes())
    with pytest.raises(ConfigError, match=f"{tmp_path} has no checkpoint"):
        render(tmp_path, tmp_path / "rollout.gif")


def test_a_figure_shows_what_was_published_for_an_environment_of_a_library(monkeypatch, tmp_path):
    stop_at_once("painted", {}, tmp_path / "run")
    monkeypatch.setattr(registry, "PUBLISHED", {"test_rendering:painted": {"PPO": 968.0}})
    drawn = []
    monkeypatch.setattr(show.figures, "plot", lambda runs, path: drawn.extend(runs))
    show.plot(tmp_path / "run", tmp_path / "a.png")
    assert [curves.references for curves in drawn] == [{"PPO": 968.0}]
