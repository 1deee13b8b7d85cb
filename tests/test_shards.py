"""Members in shards: each has its part of environments, replay and batches, and all learn as one."""

import dataclasses
import os
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from helpers import after, comparable, equal
from jax.sharding import PartitionSpec

from jaxddpg import config, settings
from jaxddpg.agents.copdac import copdac
from jaxddpg.agents.d4pg import d4pg
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.agents.fasttd3 import fasttd3
from jaxddpg.agents.td3 import td3
from jaxddpg.config import build
from jaxddpg.parts import noise, replay, sharding
from jaxddpg.parts.features import polynomial
from jaxddpg.runs.load import evaluate, load_policy
from jaxddpg.runs.start import resume, run
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.types import Clock

CLOCK = Clock(np.uint32(1), np.uint32(0), num_envs=4, num_shards=4)
SIZES = {
    "training": {"num_envs": 8, "num_shards": 4, "warmup_steps": 16, "steps_per_epoch": 20, "num_epochs": 3},
    "agent": {"batch_size": 32, "actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}},
    "replay": {"capacity": 800},
    "evaluation": {"num_episodes": 2},
    "population": {"num_seeds": 3},
}


def learner(kind):
    """Agent makers by what they are to be split for, each called with the name of the axis or none."""
    environment = probes.echo(action_size=2)
    if kind in ("none", "layer", "batch"):
        network = {"hidden_sizes": (8, 8), "normalization": kind}
        critic = settings.Critic(**network, action_layer=1, weight_decay=0.1)
        section = settings.DDPG(batch_size=32, max_grad_norm=0.1, actor=settings.Actor(**network), critic=critic)
        return environment, partial(ddpg, environment, section)
    if kind == "td3":
        network = {"hidden_sizes": (8, 8), "normalization": "layer"}
        actor, critic = settings.TD3Actor(**network), settings.TD3Critic(**network, weight_decay=0.1)
        # The noise is drawn by each shard for itself.
        section = settings.TD3(batch_size=32, max_grad_norm=0.1, target_noise=0.0, actor=actor, critic=critic)
        return environment, partial(td3, environment, dataclasses.replace(section, policy_delay=1))
    if kind == "d4pg":
        section = settings.D4PG(batch_size=32, num_atoms=5, v_min=-5.0, v_max=5.0)
        return environment, partial(d4pg, environment, section)
    if kind == "fasttd3":
        networks = {"actor": settings.FastTD3Actor((8,)), "critic": settings.FastTD3Critic((8,))}
        numbers = {"target_noise": 0.0, "policy_delay": 1, "num_atoms": 5, "v_min": -5.0, "v_max": 5.0}
        return environment, partial(fasttd3, environment, settings.FastTD3(batch_size=32, **networks, **numbers))
    features = polynomial(-jnp.ones(1), jnp.ones(1), 2)
    section = settings.COPDAC(critic=kind, batch_size=32, max_grad_norm=0.1)
    return environment, partial(copdac, environment, features, section)


def over_devices(update):
    """A shard's `update(state, batch)` of whole batches, on two devices."""
    mesh = jax.make_mesh((2,), (sharding.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    by_row, everywhere = PartitionSpec(sharding.AXIS), PartitionSpec()
    return jax.shard_map(update, mesh=mesh, in_specs=(everywhere, by_row), out_specs=everywhere, check_vma=False)


def over_vmap(update):
    """The same by `vmap`, in four shards."""
    mapped = jax.vmap(update, in_axes=(None, 0), out_axes=None, axis_name=sharding.AXIS)
    return lambda state, batch: mapped(state, jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch))


@pytest.mark.parametrize("kind", ["none", "layer", "batch", "td3", "d4pg", "fasttd3", "q", "gq", "regression"])
@pytest.mark.parametrize("over", [over_vmap, over_devices])
def test_shards_learn_as_one_from_the_whole_batch(kind, over):
    """The update of shards is that of the whole batch: parameters, moments, statistics, metrics; in double precision,
    as Adam divides gradients of zero, such as those of biases before a normalization, by their size."""
    environment, make = learner(kind)
    key = jax.random.key(0)
    with jax.enable_x64(True):
        whole, split = make(), make(axis_name=sharding.AXIS)
        state = jax.jit(whole.init)(key)
        of_whole, of_shards = (
            jax.jit(how(partial(agent.update, key, CLOCK))) for how, agent in ((lambda f: f, whole), (over, split))
        )
        for step in range(3):
            batch = probes.batch(jax.random.key(step), environment, 32)
            expected, found = of_whole(state, batch), of_shards(state, batch)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
            state, _ = expected


def train():
    """What three members in four shards are after two epochs, and the text of their epoch."""
    experiment = config.parse(SIZES).experiment
    population = build.populate(config.resolve(experiment).run())
    population.compile(clock_at(experiment.training, 0), False)
    state = population.init()
    for epoch in (1, 2):
        state, metrics = population.epoch(clock_at(experiment.training, epoch), state)
    state = population.scatter(population.gather(state))  # as a resumed run does
    state, metrics = population.epoch(clock_at(experiment.training, 3), state)
    evaluation = population.evaluate(clock_at(experiment.training, 3), state.agent)
    text = population.programs["epoch"].compiled.as_text()
    return population.gather(state), metrics() | evaluation(), text, state


def save(path):
    """Leaves them on eight devices: two rows of four."""
    assert jax.local_device_count() == 8
    state, metrics, text, spread = train()
    for leaf in jax.tree.leaves(spread.agent):
        copies = [(shard.index, np.asarray(shard.data)) for shard in leaf.addressable_shards]
        assert all((a == b).all() for i, a in copies for j, b in copies if i == j)
    rows = [len(shard.data[0]) for shard in spread.replay.rows.addressable_shards]
    assert rows == [200 * 9] * 8
    kinds = Counter(re.findall(r"(all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text))
    assert set(kinds) == {"all-reduce"}
    np.savez(path, *jax.tree.leaves((state, metrics)))


@pytest.mark.slow
def test_a_mesh_of_members_and_shards_gives_the_same_numbers(tmp_path):
    """Two devices are fewer than four shards, so one holds all; eight are two rows. The numbers are the same."""
    program = f"import test_shards; test_shards.save({str(tmp_path / 'mesh.npz')!r})"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=Path(__file__).parent)
    state, metrics, text, _ = train()
    assert "all-reduce" not in text
    with np.load(tmp_path / "mesh.npz") as mesh:
        for leaf, name in zip(jax.tree.leaves((state, metrics)), mesh.files, strict=True):
            np.testing.assert_allclose(leaf, mesh[name], rtol=1e-3, atol=1e-4)


def test_an_update_speaks_once_for_each_gradient():
    """One all-reduce for the critic's, one for the actor's, with all that is measured beside it."""
    environment, make = learner("none")
    agent = make(axis_name=sharding.AXIS)
    update = over_devices(partial(agent.update, jax.random.key(0), CLOCK))
    batch = probes.batch(jax.random.key(0), environment, 32)
    text = jax.jit(update).lower(jax.eval_shape(agent.init, jax.random.key(0)), batch).compile().as_text()
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 2


def test_shards_have_environments_of_their_own():
    """No two environments of a member start alike or draw the same actions, in whatever shard they are."""
    experiment = config.parse(SIZES).experiment
    state = jax.jit(build.build(experiment.member()).init)(jax.random.key(0))
    assert state.observation.shape == (8, 3)
    assert len(np.unique(np.asarray(state.observation), axis=0)) == 8
    written = np.asarray(state.replay.rows).reshape(4, 200, 9)[:, : 16 * 2]
    assert len(np.unique(written.reshape(-1, written.shape[-1]), axis=0)) == 4 * 32


def test_shards_explore_and_sample_by_themselves():
    """In an epoch no two environments are disturbed alike, and no two shards draw their batches with one key."""
    environment, make = learner("none")
    axis = sharding.AXIS

    def sample(key, clock, state, n):
        rows = buffer.sample(key, clock, state, n)
        return rows.replace(reward=jax.random.normal(key, (n, 1)))

    def update(key, clock, state, batch):
        mean, draw = jnp.mean(batch.reward), jax.random.normal(key)
        spread = [jax.lax.pmax(x, axis) - jax.lax.pmin(x, axis) for x in (mean, draw)]
        return agent.update(key, clock, state, batch)[0], {"sampling": spread[0], "updating": spread[1]}

    agent, buffer = make(axis_name=axis), replay.uniform(200)
    config = settings.Training(num_envs=8, num_shards=4, warmup_steps=16, steps_per_epoch=19, num_epochs=1)
    parts = (agent._replace(update=update), noise.gaussian(0.1), buffer._replace(sample=sample))
    trainer = sharding.vmap_shards(make_trainer(environment, *parts, config), 4)
    key = jax.random.key(0)
    state, metrics = jax.jit(trainer.epoch)(key, clock_at(config, 1), jax.jit(trainer.init)(key))
    assert len(np.unique(np.asarray(state.noise), axis=0)) == 8
    assert metrics["sampling"] > 0.01
    assert metrics["updating"] > 0.01


def test_what_one_shard_finds_not_finite_freezes_the_member():
    sections = SIZES | {"environment": {"name": "probes:spoiled", "parameters": {"nan_at_step": 25.0}}}
    trainer = build.build(config.parse(sections).experiment.member())
    key = jax.random.key(0)
    state = jax.jit(trainer.init)(key)
    # One of the eight environments is older than the others, so that it alone is spoiled at the given step.
    state = state.replace(environment=state.environment.at[5].add(3.0))
    after, _ = jax.jit(trainer.epoch)(key, clock_at(config.parse(sections).experiment.training, 1), state)
    assert (int(after.health.reason), int(after.health.step)) == (2, 22)
    jax.tree.map(np.testing.assert_array_equal, after.agent, state.agent)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ({"training.num_envs": 6}, "training.num_envs is 6, but must be a multiple of training.num_shards, 4; use 8"),
        ({"agent.batch_size": 30}, "agent.batch_size is 30, but must be a multiple of training.num_shards, 4; use 32"),
        (
            {"agent.microbatch_size": 16},
            "agent.microbatch_size is 16, but must divide the per-shard batch size, 8; "
            "use 0 to choose it automatically",
        ),
        ({"training.num_shards": 0}, "training.num_shards is 0, but must be at least 1 (default 1)"),
    ],
)
def test_what_cannot_be_split_is_said(overrides, fault):
    with pytest.raises(config.ConfigError) as caught:
        config.parse(SIZES, overrides)
    assert fault in caught.value.errors


@pytest.mark.parametrize("num_shards", [2, 4])
def test_members_in_shards_are_copied_whole(num_shards):
    """Spread over both devices, or all shards on one: every part of a copy is that of the same member."""
    experiment = config.parse(SIZES, {"training.num_shards": num_shards}).experiment
    population = build.populate(config.resolve(experiment).run())
    state = population.gather(population.init())
    copied = population.gather(population.copy(population.scatter(state), {1: 2}, {1: 2}))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[[0, 2, 2]]), copied, state)


@pytest.mark.parametrize(
    ("num_shards", "environment"), [(2, "Pendulum-v1"), (2, "probes:foreign"), (4, "probes:foreign")]
)
def test_a_run_in_shards_is_resumed_to_the_bit_and_evaluated(num_shards, environment, tmp_path):
    sections = SIZES | {"environment": {"name": environment}}
    overrides = {"training.num_shards": num_shards, "checkpoint.interval_seconds": 0}
    experiment = config.parse(sections, overrides).experiment
    whole = run(experiment, tmp_path / "whole")
    run(experiment, tmp_path / "run", should_stop=after(2))
    equal(resume(tmp_path / "run"), whole)
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
    assert [row["seed"] for row in evaluate(tmp_path / "run", num_episodes=2)] == [0, 1, 2]
    assert load_policy(tmp_path / "run", member=1)(np.ones(3, np.float32)).shape == (1,)
