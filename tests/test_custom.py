"""Agents, noises and replays of the user's own, named in YAML."""

import dataclasses
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import after, call, comparable, equal, lines, refused, tiny

import jaxddpg as jd
from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.runs.start import resume, run, sweep

ROOT = Path(__file__).parent.parent
NETWORKS = {"actor": jd.settings.Actor((8,)), "critic": jd.settings.Critic((8,))}


def make(environment, batch_size, axis_name, rate=1e-3, kind="plain"):
    section = jd.settings.DDPG(batch_size=batch_size, actor_learning_rate=rate, **NETWORKS)
    agent = jd.ddpg(environment, section, axis_name)
    broken = {
        "plain": {},
        "other size": {"batch_size": 7},
        "no record": None,
        "action": {"act": lambda state, observation: observation},
        "metric": {"diagnostics": lambda state, batch: {"x": batch.reward}},
        "state": {"update": lambda key, clock, state, batch: ((state, 0.0), {})},
        "key": wrapped(agent, jax.random.key(0)),
        "pair": wrapped(agent, jnp.zeros(3)),
        "dict": wrapped(agent, None),
        "host": {"act": lambda state, rows: on_host(agent.act(state, rows))},
    }[kind]
    return agent if broken == {} else broken and agent._replace(**broken)


def on_host(x):
    return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


def wrapped(agent, other):
    """The functions of the agent with its state in a dict, or in a tuple beside something else."""
    wrap, unwrap = (
        (lambda state: {"mine": state}, lambda state: state["mine"])
        if other is None
        else (lambda state: (state, other), lambda state: state[0])
    )

    def update(key, clock, state, batch):
        after, metrics = agent.update(key, clock, unwrap(state), batch)
        return wrap(after), metrics

    return {
        "init": lambda key: wrap(agent.init(key)),
        "act": lambda state, rows: agent.act(unwrap(state), rows),
        "value": lambda state, rows: agent.value(unwrap(state), rows),
        "update": update,
        "diagnostics": lambda state, batch: agent.diagnostics(unwrap(state), batch),
        "observe": lambda clock, state, rows: wrap(agent.observe(clock, unwrap(state), rows)),
    }


def halved_noise(width=0.2):
    return jd.noise.gaussian(width)


def doubled_replay(capacity, times=1):
    return jd.replay.uniform(times * capacity)


def broken_noise(kind):
    noise, other = jd.noise.ornstein_uhlenbeck(), jnp.zeros(3)

    def sample(key, clock, state):
        after, drawn = noise.sample(key, clock, state)
        return (other if kind == "state" else after), (other if kind == "noise" else drawn)

    def sample_beside(key, clock, state):
        after, drawn = noise.sample(key, clock, state[0])
        return (after, state[1]), drawn

    if kind == "empty":
        return jd.Noise(
            lambda key, shape: (noise.init(key, shape), jnp.zeros((0, 3))),
            sample_beside,
            lambda key, state, mask: (noise.reset(key, state[0], mask), state[1]),
        )
    return noise._replace(sample=sample, **({"reset": lambda *_: other} if kind == "reset" else {}))


def broken_replay(capacity, kind):
    replay = jd.replay.uniform(capacity)
    if kind == "state":
        return replay._replace(add=lambda *arguments: (replay.add(*arguments), 1))
    return replay._replace(sample=lambda *arguments: jax.tree.map(lambda x: x[:, 0], replay.sample(*arguments)))


@pytest.fixture(autouse=True)
def _module(monkeypatch):
    module = types.ModuleType("mine")
    for function in (make, halved_noise, doubled_replay, broken_noise, broken_replay):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "mine", module)


def custom(**changes):
    content = config.as_mapping(tiny())
    content["agent"] = {"algorithm": "mine:make", "batch_size": 4} | changes.pop("agent", {})
    return config.parse(content | changes).experiment


def test_a_custom_part_trains_as_the_same_of_the_package():
    plain = tiny(agent={"batch_size": 4, "actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}})
    plain = dataclasses.replace(plain, noise=jd.settings.Noise(smoothing=0.0, scale=0.3))
    noise, replay = {"color": "mine:halved_noise", "settings": {"width": 0.3}}, {"sampling": "mine:doubled_replay"}
    mine = custom(noise=noise, replay=replay | {"capacity": plain.replay.capacity, "settings": {"times": 1}})
    equal(run(mine), run(plain))


def test_it_is_swept_in_one_program_resumed_to_the_bit_and_reported(tmp_path):
    population = {"num_seeds": 2, "sweep": {"agent.settings.rate": [1e-4, 1e-2]}}
    experiment = custom(population=population)
    (whole,) = sweep(experiment, tmp_path / "whole")
    assert [row["agent.settings.rate"] for row in lines(tmp_path / "whole")][:4] == [1e-4, 1e-4, 1e-2, 1e-2]
    actors = np.concatenate([x.reshape(4, -1) for x in jax.tree.leaves(whole.agents.actor)], axis=1)
    assert len({row.tobytes() for row in actors}) == 4
    run(experiment, tmp_path / "run", should_stop=after(2))
    equal(resume(tmp_path / "run"), whole)
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
    assert call("report", tmp_path / "run", "--output", tmp_path / "report")[0] == 0
    assert len(jd.evaluate(tmp_path / "run", 2)) == 4


@pytest.mark.parametrize(("kind", "parts"), [("dict", {"agent.mine"}), ("pair", {"agent.0", "agent.1"})])
def test_the_state_of_an_agent_is_any_pytree(kind, parts, tmp_path):
    expected = run(custom(agent={"settings": {"kind": "plain"}}), tmp_path / "plain")
    whole = run(custom(agent={"settings": {"kind": kind}}), tmp_path / "whole")
    assert parts <= {*whole.summary["state_bytes"]}
    same = whole.agents["mine"] if kind == "dict" else whole.agents[0]
    jax.tree.map(np.testing.assert_array_equal, same, expected.agents)
    run(custom(agent={"settings": {"kind": kind}}), tmp_path / "run", should_stop=after(2))
    equal(resume(tmp_path / "run"), whole)
    count = len(jax.tree.leaves(whole.agents)[0])
    observations = np.random.default_rng(0).normal(size=(count, 5, 2)).astype(np.float32)
    jd.export(tmp_path / "run", tmp_path / "policy", "all")
    policy = jax.export.deserialize(bytearray((tmp_path / "policy" / "policy.stablehlo").read_bytes()))
    for member, actions in enumerate(policy.call(observations)):
        expected = jd.load_policy(tmp_path / "run", member)(observations[member])
        np.testing.assert_allclose(actions, expected, atol=2e-6)


def test_an_act_that_cannot_be_exported_is_refused(tmp_path):
    run(custom(agent={"settings": {"kind": "host"}}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"agent.algorithm mine:make cannot be exported: .*callback"):
        jd.export(tmp_path / "run", tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_the_code_of_a_function_may_change_between_runs_of_a_process(monkeypatch):
    first = run(custom())
    monkeypatch.setattr(sys.modules["mine"], "make", lambda *args, **kwargs: make(*args, **kwargs, rate=0.1))
    second = run(custom())
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first.agents, second.agents)), strict=True))


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (
            {"algorithm": "absent:make"},
            "agent.algorithm absent:make cannot be used: there is no module absent; ",
        ),
        ({"algorithm": "mine:nothing"}, "agent.algorithm mine:nothing cannot be used: there is no function nothing in"),
        ({"settings": {"kind": "no record"}}, "it returned NoneType, but must return a jaxddpg.Agent"),
        ({"settings": {"speed": 1.0}}, "make has no parameter speed; it has environment, "),
        ({"settings": {"kind": "other size"}}, "its batch_size is 7, but agent.batch_size is 4; make them equal"),
        ({"settings": {"kind": "action"}}, "returns act with shape [4, 2], but it must be [4, 1]"),
        ({"settings": {"kind": "metric"}}, "returns diagnostics' metric x with shape [4], but it must be []"),
        ({"settings": {"kind": "state"}}, "update returns a state with "),
        ({"settings": {"kind": "key"}}, "their state has a PRNG key; use the keys that the functions receive"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(agent, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        run(custom(agent=agent), tmp_path / "run")
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"noise": {"color": "mine:broken_noise", "settings": {"kind": "state"}}},
            "noise.color mine:broken_noise cannot be used: sample returns a state with float32[3], where that of init",
        ),
        (
            {"noise": {"color": "mine:broken_noise", "settings": {"kind": "noise"}}},
            "sample returns the noise float32[3], but must return float32[2, 1]",
        ),
        (
            {"noise": {"color": "mine:broken_noise", "settings": {"kind": "reset"}}},
            "reset returns a state with float32[3], where that of init",
        ),
        (
            {"noise": {"color": "mine:broken_noise", "settings": {"kind": "empty"}}},
            "their state has an array of size 0, state.noise[1]; leave it out",
        ),
        (
            {"replay": {"sampling": "mine:broken_replay", "capacity": 64, "settings": {"kind": "state"}}},
            "replay.sampling mine:broken_replay cannot be used: add returns a state with [0].rows float32[448], [1]",
        ),
        (
            {"replay": {"sampling": "mine:broken_replay", "capacity": 64, "settings": {"kind": "rows"}}},
            "sample returns rewards float32[4], but must return rows [4, steps]",
        ),
    ],
)
def test_a_noise_or_a_replay_of_other_shapes_is_refused(section, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        run(custom(**section), tmp_path / "run")
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"agent": {"algorithm": "sac"}},
            "agent.algorithm is sac, but must be one of ddpg, td3, d4pg, fasttd3, copdac",
        ),
        ({"agent": {"algorithm": "sac"}}, "package.module:factory (default ddpg)"),
        ({"agent": {"algorithm": "mine:make", "tau": 0.1}}, "agent.algorithm is mine:make, whose settings belong in"),
        ({"agent": {"algorithm": "mine:make", "size": 0.1}}, "agent.size is not a setting"),
        ({"noise": {"color": "brown"}}, "noise.color is brown, but must be one of ou, pink, ladder, package.module"),
        ({"agent": {"algorithm": "mine:make", "settings": {"rate": 1e-50}}}, "agent.settings.rate is 1.0e-50"),
    ],
)
def test_a_bad_section_is_refused(section, said):
    with pytest.raises(ConfigError) as error:
        config.parse(section)
    assert said in str(error.value)


def test_the_example_trains_and_smooths(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    flags = "--training.num_epochs 1 --training.steps_per_epoch 20 --replay.capacity 4000 --num-seeds 2 --quiet"
    agent = "{algorithm: examples.smoothed_ddpg:smoothed_ddpg, batch_size: 16, settings: {target_noise: 0.3}}"
    said = call(
        "train", ROOT / "configs/pendulum.yaml", "--agent", agent, "--run-dir", tmp_path / "run", *flags.split()
    )
    assert said[0] == 0, said
    agents = []
    for noise in (1e-6, 0.5):
        settings = {"target_noise": noise, "actor": jd.settings.Actor((8,)), "critic": jd.settings.Critic((8,))}
        from examples.smoothed_ddpg import smoothed_ddpg

        environment = build.make_environment(tiny().environment)
        agent = smoothed_ddpg(environment, 8, None, **settings)
        plain = jd.ddpg(environment, jd.settings.DDPG(batch_size=8, **NETWORKS))
        state = plain.init(jax.random.key(0))
        draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape)  # noqa: E731
        batch = jd.Transition(draw(0, 8, 2), draw(1, 8, 1), draw(2, 8), draw(3, 8, 2), jnp.full(8, 0.9))
        clock = jd.Clock(np.uint32(1), np.uint32(0), 1)
        found = agent.update(jax.random.key(5), clock, state, batch)[1]["critic_loss"]
        agents.append((found, plain.update(jax.random.key(5), clock, state, batch)[1]["critic_loss"]))
    assert agents[0][0] == pytest.approx(float(agents[0][1]), rel=1e-5)
    assert abs(agents[1][0] - agents[1][1]) > 1e-6


def test_a_custom_sampling_is_told_the_capacity_of_a_shard(tmp_path):
    content = config.as_mapping(custom())
    content["replay"] = {"sampling": "mine:doubled_replay", "capacity": 64, "settings": {"times": 2}}
    content["training"] |= {"num_shards": 2}
    trainer = build.build(config.parse(content).experiment.member())
    assert jax.eval_shape(trainer.init, jax.random.key(0)).replay.rows.shape == (128 * 7,)
    assert refused(call("train", tmp_path / "none.yaml"), "does not exist") == []
