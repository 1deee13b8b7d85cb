import contextlib
import dataclasses
import errno
import gzip
import hashlib
import importlib.metadata
import json
import os
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from helpers import ENVS, EPOCHS, MEMBERS, PERIOD, STEPS, WARMUP, call, events, lines, summary_of, tiny

from jaxddpg import config
from jaxddpg.config import ConfigError
from jaxddpg.config.build import make_agent
from jaxddpg.config.environment import make_environment
from jaxddpg.report import rows
from jaxddpg.runs import directory as directory_module
from jaxddpg.runs import start as start_module
from jaxddpg.runs.load import evaluate, load_policy
from jaxddpg.runs.show import plot
from jaxddpg.runs.start import run
from jaxddpg.statistics import confidence_interval

IDENTITY = {"epoch", "member", "seed", "env_steps", "updates", "wall_seconds", *rows.NOT_FINITE}
MEASURED = ("return_mean", "return_std", "q_start_mean", "discounted_return_mean", "overestimation")
EVALUATION = {f"eval/{name}" for name in MEASURED}
LEARNING = {
    *(f"train/{name}" for name in ("return_mean", "critic_loss", "actor_loss", "q_mean")),
    *(f"train/{network}_{gauge}" for network in ("actor", "critic") for gauge in ("gradient_norm", "dead_units")),
    "train/actor_saturation",
    *(f"perf/{name}" for name in ("env_steps_per_second", "updates_per_second")),
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run's directory and its result."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, run(tiny(reporting={"tensorboard": True}), directory)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """A run of one member with several updates per step and no directory: the current directory and its result."""
    directory = tmp_path_factory.mktemp("alone")
    training = vars(tiny().training) | {"updates_per_step": 3, "num_epochs": 1}
    with contextlib.chdir(directory):
        return directory, run(tiny(training=training, population={"num_seeds": 1}))


@pytest.fixture(scope="session")
def unlearned(tmp_path_factory):
    """The directory and the result of a run stopped after epoch 0, before any learning, logged by W&B."""
    directory = tmp_path_factory.mktemp("unlearned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        return directory, run(tiny(reporting={"wandb": True}), directory, should_stop=lambda: True)


@pytest.fixture(scope="session")
def measured(finished):
    """Three evaluations of the finished run, the last with another seed."""
    return [evaluate(finished[0], num_episodes=2, seed=seed) for seed in (0, 0, 1)]


def update_counts(agents):
    """The steps that each member's two optimizers have taken, by their own count."""
    return np.stack([optax.tree.get(agents.actor_optimizer, "count"), optax.tree.get(agents.critic_optimizer, "count")])


def test_a_result_is_shown_in_a_line(finished):
    """A notebook shows the value of its last line."""
    result = finished[1]
    returns = np.array([member["final_return"] for member in result.summary["members"]])
    low, high = confidence_interval(returns)
    expected = f"members: {MEMBERS}, epochs: {EPOCHS}, IQM of the final returns: {returns.mean():.5g}"
    assert repr(result) == f"Result(MountainCarContinuous-v0, {expected} (95% interval {low:.5g} to {high:.5g}))"
    assert len(repr(result)) < 400


def test_a_run_directory_holds_what_it_should(finished):
    names = {path.name for path in finished[0].iterdir()}
    assert names == {
        ".lock",
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "learning_curve.png",
        "checkpoints",
        "tensorboard",
    }


def test_the_config_in_it_is_the_experiment(finished):
    assert config.read(finished[0] / "config.yaml").experiment == tiny(reporting={"tensorboard": True})


def test_there_is_a_line_per_epoch_and_member_the_start_included(finished):
    assert [(line["epoch"], line["member"], line["seed"]) for line in lines(finished[0])] == [
        (epoch, member, 7 + member) for epoch in range(EPOCHS + 1) for member in range(MEMBERS)
    ]


def test_every_line_has_the_keys_of_the_contract(finished):
    for line in lines(finished[0]):
        assert set(line) == IDENTITY | EVALUATION | (LEARNING if line["epoch"] else set())


def test_env_steps_and_updates_are_counted_from_the_warm_up_on(finished):
    counted = {line["epoch"]: (line["env_steps"], line["updates"]) for line in lines(finished[0])}
    assert counted == {epoch: ((WARMUP + epoch * STEPS) * ENVS, epoch * STEPS // PERIOD) for epoch in range(EPOCHS + 1)}


def test_as_many_updates_were_made_as_are_claimed(finished):
    assert lines(finished[0])[-1]["updates"] == 4
    np.testing.assert_array_equal(update_counts(finished[1].agents), np.full((2, MEMBERS), 4))


def test_as_many_updates_were_made_as_are_claimed_with_several_per_step(alone):
    _, result = alone
    assert result.rows[-1]["updates"] == 3 * STEPS
    np.testing.assert_array_equal(update_counts(result.agents), np.full((2, 1), 3 * STEPS))


def test_a_mean_over_no_episode_is_null(finished):
    """Ten steps do not pass before the second epoch."""
    ended = [line["train/return_mean"] is not None for line in lines(finished[0]) if line["epoch"]]
    assert ended == [False] * MEMBERS + [True] * MEMBERS


def test_members_differ_and_time_passes(finished):
    written = lines(finished[0])
    assert len({line["eval/return_mean"] for line in written}) == len(written)
    times = [line["wall_seconds"] for line in written]
    assert times == sorted(times)
    assert times[0] > 0


def test_the_rates_are_those_of_the_whole_population(finished):
    """Both rates measure the same seconds."""
    last = lines(finished[0])[-1]
    assert last["perf/env_steps_per_second"] / last["perf/updates_per_second"] == pytest.approx(ENVS * PERIOD)
    epoch_seconds = MEMBERS * STEPS * ENVS / last["perf/env_steps_per_second"]
    assert 0 < epoch_seconds < last["wall_seconds"]


def test_the_result_is_what_stands_on_disk(finished):
    directory, result = finished
    assert lines(directory) == rows.plain_json(result.rows)
    assert summary_of(directory) == rows.plain_json(result.summary)


def test_the_summary_tells_each_members_final_and_best_return(finished):
    written = lines(finished[0])
    for member, told in enumerate(summary_of(finished[0])["members"]):
        returns = [line["eval/return_mean"] for line in written if line["member"] == member]
        assert told == {
            "member": member,
            "seed": 7 + member,
            "final_return": returns[-1],
            "best_return": max(returns),
            "best_epoch": returns.index(max(returns)),
            "diverged_by": "",
            "diverged_in": "",
            "diverged_at": None,
            "unmeasured_by": "",
        }


def test_the_summarys_mean_is_that_of_the_final_returns(finished):
    """A quarter of three members is less than one, so none is left out."""
    summary = summary_of(finished[0])
    final = [member["final_return"] for member in summary["members"]]
    low, high = summary["final_return_interval_95"]
    assert summary["final_return_iqm"] == pytest.approx(statistics.mean(final))
    assert min(final) <= low < summary["final_return_iqm"] < high <= max(final)


def test_the_summary_counts_all_members(finished):
    summary = summary_of(finished[0])
    assert (summary["epochs"], summary["env_steps_per_member"]) == (EPOCHS, (WARMUP + EPOCHS * STEPS) * ENVS)
    assert summary["env_steps_total"] == summary["env_steps_per_member"] * MEMBERS
    assert summary["updates_total"] == EPOCHS * STEPS // PERIOD * MEMBERS


def test_the_summarys_rates_are_the_median_of_the_epochs(finished):
    summary, written = summary_of(finished[0]), lines(finished[0])
    for name in ("env_steps_per_second", "updates_per_second"):
        assert summary[name] == statistics.median(line[f"perf/{name}"] for line in written if line["epoch"])


def test_the_summary_tells_time_memory_and_versions(finished):
    directory, summary = finished[0], summary_of(finished[0])
    assert summary["environment"] == "MountainCarContinuous-v0"
    assert 0 < summary["compile_seconds"] < summary["wall_seconds"] + 60
    assert 5e7 < summary["peak_memory_bytes"] < 1e12
    assert summary["device"] == "cpu x 2"
    assert summary["versions"]["jax"] == importlib.metadata.version("jax")
    assert summary["config_hash"] == hashlib.sha256((directory / "config.yaml").read_bytes()).hexdigest()[:16]


def test_tensorboard_shows_what_the_metrics_say(finished):
    for line in lines(finished[0]):
        shown = events(finished[0] / "tensorboard" / f"seed_{line['seed']}")
        tag = "eval/return_mean"
        assert shown[tag, line["env_steps"]] == pytest.approx(line[tag], rel=1e-6)


def test_without_a_directory_nothing_is_written(alone):
    assert list(alone[0].iterdir()) == []


def test_a_run_stopped_before_learning_is_complete(unlearned):
    directory, result = unlearned
    assert [row["epoch"] for row in result.rows] == [0] * MEMBERS
    assert summary_of(directory)["epochs"] == 0
    assert summary_of(directory)["env_steps_per_second"] is None
    assert load_policy(directory)(np.zeros(2)).shape == (1,)
    assert (directory / "learning_curve.png").is_file()


def test_weights_and_biases_gets_the_run(unlearned):
    assert len(list((unlearned[0] / "wandb").glob("offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("member", range(MEMBERS))
def test_a_loaded_policy_acts_as_the_agent_in_the_environments_units(member, finished):
    directory, result = finished
    experiment = tiny()
    agent = make_agent(make_environment(experiment.environment), experiment.agent)
    state = jax.tree.map(lambda leaf: leaf[member], result.agents)
    observation = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    expected = -0.5 + (np.asarray(agent.act(state, observation)) + 1) / 2 * 2.5
    np.testing.assert_allclose(load_policy(directory, member)(observation), expected, rtol=1e-5)
    np.testing.assert_allclose(load_policy(directory, member)(observation[0]), expected[0], rtol=1e-5)


def test_a_policy_can_be_compiled_and_vectorized(finished):
    policy = load_policy(finished[0], 1)
    observations = np.random.default_rng(1).normal(size=(5, 2))
    expected = np.stack([policy(observation) for observation in observations])
    np.testing.assert_allclose(jax.jit(policy)(observations), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(policy)(observations), expected, atol=1e-6)
    slope = jax.grad(lambda observation: policy(observation).sum())(jax.numpy.asarray(observations[0]))
    assert np.all(slope != 0)
    with pytest.raises(ValueError, match=r"observation has shape \(3,\), but must be \[..., 2\]"):
        jax.jit(policy)(np.zeros(3))


def test_a_profile_shows_the_compiled_epoch(tmp_path):
    """It ends with the run, which is shorter than it; the command says where it is and how it is opened."""
    (tmp_path / "tiny.yaml").write_text(config.dump(tiny()))
    code, _, err = call("train", tmp_path / "tiny.yaml", "--run-dir", tmp_path / "run", "--profile")
    assert code == 0
    assert f"trace in {tmp_path}/run/profile: open its file .trace.json.gz at https://ui.perfetto.dev, or" in err
    (path,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    with gzip.open(path) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert any("while" in name or "fusion" in name or name.startswith("dot") for name in names), sorted(names)
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()


def test_a_profile_needs_a_directory():
    with pytest.raises(ConfigError, match="profile=True requires a directory for the trace"):
        run(tiny(), profile=True)


def test_a_member_that_does_not_exist_has_no_policy(finished):
    with pytest.raises(ConfigError, match=f"member is {MEMBERS}.*below {MEMBERS}"):
        load_policy(finished[0], MEMBERS)
    for wrong in ("all", True, 0.0, None):
        with pytest.raises(ConfigError, match=r"member is .*, but must be a member index"):
            load_policy(finished[0], wrong)


def test_an_evaluation_is_the_same_each_time(measured):
    assert measured[0] == measured[1]


def test_an_evaluation_has_a_row_per_member(measured):
    assert [(row["member"], row["seed"]) for row in measured[0]] == [(member, 7 + member) for member in range(MEMBERS)]
    identity = {"epoch", "member", "seed", "num_episodes", "episode_seed", "diverged", "unmeasured_by"}
    assert set(measured[0][0]) == identity | {name.removeprefix("eval/") for name in EVALUATION}


def test_an_evaluation_plays_other_episodes_than_training_and_than_another_seed(measured, finished):
    trained = [row["eval/return_mean"] for row in finished[1].rows[-MEMBERS:]]
    first, _, other = ([row["return_mean"] for row in rows] for rows in measured)
    assert not set(trained) & set(first)
    assert not set(first) & set(other)


def replot(directory):
    plot([directory], directory / "picture.png")


@pytest.mark.parametrize("reader", [evaluate, load_policy, replot])
def test_a_directory_without_a_run_is_refused(reader, tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path.name} is not a run directory"):
        reader(tmp_path)


@pytest.mark.parametrize("reader", [evaluate, load_policy])
def test_a_run_killed_before_its_checkpoint_is_refused(reader, finished, tmp_path):
    (tmp_path / "config.yaml").write_bytes((finished[0] / "config.yaml").read_bytes())
    with pytest.raises(ConfigError, match=f"{tmp_path} has no checkpoint"):
        reader(tmp_path)


def test_a_run_without_metrics_has_no_picture(finished, tmp_path):
    (tmp_path / "config.yaml").write_bytes((finished[0] / "config.yaml").read_bytes())
    with pytest.raises(ConfigError, match=f"metrics of {tmp_path} cannot be drawn: metrics.jsonl is missing"):
        replot(tmp_path)


def test_settings_made_in_python_are_checked_before_anything_is_written(tmp_path):
    experiment = tiny()
    faulty = dataclasses.replace(experiment, replay=dataclasses.replace(experiment.replay, capacity=2))
    with pytest.raises(ConfigError, match=r"replay\.capacity"):
        run(faulty, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "package"), [("reporting.tensorboard", "tensorboardX"), ("reporting.wandb", "wandb")])
def test_a_missing_extra_is_said_before_the_directory_is_taken(name, package, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=f"{name} is true, but {package} is not installed"):
        run(config.parse({}, {name: True}).experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_of_two_runs_that_start_together_one_gets_the_directory(tmp_path):
    with directory_module.locked(tmp_path / "run"), pytest.raises(ConfigError, match="another process is training"):
        run(tiny(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_overrides_may_be_values():
    path = Path(__file__).parent.parent / "configs" / "pendulum.yaml"
    loaded = start_module.load(path, {"agent.tau": 0.01, "agent.actor.hidden_sizes": [8], "population.num_seeds": 3})
    assert (loaded.agent.tau, loaded.agent.actor.hidden_sizes, loaded.population.num_seeds) == (0.01, (8,), 3)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"observation": jnp.zeros(3)}, "returns observation as float32[3], but must return float32[1]"),
        ({"final_observation": jnp.zeros(1, int)}, "returns final_observation as int32[1]"),
        ({"reward": jnp.zeros(1)}, "returns reward as float32[1], but must return float32[]"),
        ({"terminated": jnp.zeros(())}, "returns terminated as float32[], but must return bool[]"),
    ],
)
def test_an_environment_that_breaks_the_contract_is_refused(change, fragment, monkeypatch):
    world = probes.echo()

    def step(key, state, action):
        state, time_step = world.step(key, state, action)
        return state, time_step.replace(**change)

    monkeypatch.setattr(probes, "broken", lambda: world._replace(step=step), raising=False)
    with pytest.raises(ConfigError) as error:
        run(config.parse({}, {"environment.name": "probes:broken"}).experiment)
    assert fragment in str(error.value)


def test_an_environment_that_keeps_a_key_is_refused(monkeypatch):
    """Keys follow from the seed and the clock; a checkpoint holds none."""
    world = probes.echo()

    def reset(key):
        state, observation = world.reset(key)
        return (key, state), observation

    def step(_, state, action):
        key, use = jax.random.split(state[0])
        inner, time_step = world.step(use, state[1], action)
        return (key, inner), time_step

    monkeypatch.setattr(probes, "keeper", lambda: world._replace(reset=reset, step=step), raising=False)
    with pytest.raises(ConfigError, match="stores a PRNG key in its state; use the key passed to step instead"):
        run(config.parse({}, {"environment.name": "probes:keeper"}).experiment)


def test_an_environment_that_branches_on_its_number_is_refused(monkeypatch):
    monkeypatch.setattr(probes, "branching", lambda push: probes.echo(3 if push > 2 else 4), raising=False)
    with pytest.raises(ConfigError, match="probes:branching cannot be"):
        run(config.parse({"environment": {"name": "probes:branching", "parameters": {"push": 3.0}}}).experiment)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"action_low": -np.inf, "action_high": np.inf}, "unbounded action Box"),
        ({"action_low": 1.0, "action_high": -1.0}, "reversed action Box"),
        ({"action_low": np.zeros(3)}, "cannot be used"),
        ({"episode_length": 20.5}, "its episode_length is 20.5, but must be an integer of at least 1"),
        ({"action_size": 0}, "its action_size is 0"),
        ({"step": lambda key, state, action: (state, {})}, "step must return a state and a TimeStep, not a dict"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(change, fragment, monkeypatch):
    monkeypatch.setattr(probes, "broken", lambda: probes.echo()._replace(**change), raising=False)
    with pytest.raises(ConfigError) as error:
        run(config.parse({}, {"environment.name": "probes:broken"}).experiment)
    assert fragment in str(error.value)


@pytest.mark.parametrize("name", ["a[b]", "a\\b", "gs:/a", os.fsdecode(b"\xff")])
def test_a_directory_that_the_checkpoint_library_reads_otherwise_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"^/.* (has|is not valid) .*; use another path$"):
        run(config.parse({}).experiment, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "curves"])
def test_a_picture_needs_a_name_and_a_kind(name, tmp_path):
    with pytest.raises(ConfigError, match="does not name an image file"):
        plot([tmp_path], tmp_path / name)


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(directory_module.fcntl, "flock", unsupported)
    with (
        pytest.warns(UserWarning, match=r"run/\.lock cannot be locked \(Function not implemented\); make sure that no"),
        directory_module.locked(tmp_path / "run"),
    ):
        assert (tmp_path / "run").is_dir()
