import dataclasses
from functools import partial
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import probes
import pytest

from jaxddpg.agents.ddpg import ddpg
from jaxddpg.settings import DDPG, Actor, Critic
from jaxddpg.training.evaluation import evaluate
from jaxddpg.types import Clock, Environment, Transition

CLOCK = Clock(np.uint32(1), np.uint32(0), num_envs=1)
WORLD = Environment(None, None, observation_size=3, action_size=2, episode_length=1)
CONFIG = DDPG(
    tau=0.05,
    actor_learning_rate=2e-3,
    critic_learning_rate=5e-3,
    actor=Actor(hidden_sizes=(16, 12), final_bound=0.3),
    critic=Critic(hidden_sizes=(16, 12), final_bound=0.3),
)
BATCH_NORM = dataclasses.replace(
    CONFIG,
    actor=Actor((16, 12), "batch", 0.3),
    critic=Critic((16, 12), action_layer=1, normalization="batch", final_bound=0.3),
)


def batch(seed=0, rows=24):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Transition(
        draw(rows, 3), np.tanh(draw(rows, 2)), draw(rows), draw(rows, 3), 0.9 * (rng.random(rows) > 0.3).astype("f4")
    )


def jitted(name):
    """A function of the agent that settings describe. One program serves all their numbers, and all tests."""
    return jax.jit(lambda config, *arguments: getattr(ddpg(WORLD, config), name)(*arguments))


FUNCTIONS = {name: jitted(name) for name in ("init", "act", "value", "update")}


def make(config):
    """The agent, with functions that are compiled once for all settings of the same shapes."""
    agent = ddpg(WORLD, config)
    return agent._replace(**{name: partial(function, config) for name, function in FUNCTIONS.items()})


def start(config=CONFIG, seed=0):
    agent = make(config)
    return agent, agent.init(jax.random.key(seed))


def update(agent, state, data, clock=CLOCK):
    return agent.update(jax.random.key(0), clock, state, data)


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def close(one, other, **tolerance):
    """Asserts that all leaves are close."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def host(tree):
    """The same as NumPy's arrays, whose arithmetic needs no compilation."""
    return jax.tree.map(np.asarray, tree)


def layers(variables):
    params = variables["params"]
    return [(np.float64(params[n]["kernel"]), np.float64(params[n]["bias"])) for n in sorted(params)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_the_paper(weight_decay):
    """Twenty updates against algorithm 1 written in NumPy in double precision."""
    config = dataclasses.replace(CONFIG, critic=dataclasses.replace(CONFIG.critic, weight_decay=weight_decay))
    agent, state = start(config)
    # Other targets than the online networks, so that mixing them up shows.
    other = agent.init(jax.random.key(1))
    state = state.replace(target_actor=other.actor, target_critic=other.critic)
    networks = [layers(v) for v in (state.actor, state.critic, state.target_actor, state.target_critic)]
    oracle = oracles.DDPG(*networks, 2e-3, 5e-3, 0.05, weight_decay)
    for seed in range(20):
        data = batch(seed)
        state, metrics = update(agent, state, data)
        critic_loss, actor_loss = oracle.update(
            data.observation, data.action, data.reward, data.next_observation, data.discount
        )
        np.testing.assert_allclose(metrics["critic_loss"], critic_loss, rtol=1e-3)
        np.testing.assert_allclose(metrics["actor_loss"], actor_loss, rtol=1e-3, atol=1e-4)
    for ours, theirs in (
        (state.actor, oracle.actor),
        (state.critic, oracle.critic),
        (state.target_actor, oracle.target_actor),
        (state.target_critic, oracle.target_critic),
    ):
        for (weight, bias), (expected_weight, expected_bias) in zip(layers(ours), theirs, strict=True):
            np.testing.assert_allclose(weight, expected_weight, atol=2e-4)
            np.testing.assert_allclose(bias, expected_bias, atol=2e-4)


def test_the_target_comes_from_both_target_networks_and_from_no_online_one():
    agent, state = start()
    other = agent.init(jax.random.key(5))
    state = state.replace(target_actor=other.actor, target_critic=other.critic)
    loss = update(agent, state, batch())[1]["critic_loss"]
    for name, online in (("target_actor", state.actor), ("target_critic", state.critic)):
        assert update(agent, state.replace(**{name: online}), batch())[1]["critic_loss"] != loss
    assert update(agent, state.replace(actor=other.actor), batch())[1]["critic_loss"] == loss


def test_the_critic_learns_from_the_replayed_actions():
    agent, state = start()
    data = batch()
    moved = data.replace(action=data.action[::-1])
    assert not same(update(agent, state, data)[0].critic, update(agent, state, moved)[0].critic)


def test_the_actor_learns_from_the_observations_alone():
    """With the critic held still, replayed actions, rewards and successors cannot reach the actor."""
    agent, state = start(dataclasses.replace(CONFIG, critic_learning_rate=0.0))
    other = batch(1)
    changed = batch().replace(
        action=other.action, reward=other.reward, next_observation=other.next_observation, discount=other.discount
    )
    assert same(update(agent, state, batch())[0].actor, update(agent, state, changed)[0].actor)
    moved = batch().replace(observation=other.observation)
    assert not same(update(agent, state, batch())[0].actor, update(agent, state, moved)[0].actor)


def test_the_actors_gradient_is_the_chain_rule_through_the_new_critic():
    """Adam's first moment after one step is a tenth of the gradient."""
    agent, state = start()
    data = batch()
    new, _ = update(agent, state, data)

    def mu(params, observation):
        return agent.act(state.replace(actor={"params": params}), observation)

    def q(observation, action):
        """Q of the new critic at a free action, by an agent whose policy is that action."""
        weights = layers(new.critic)
        x = jnp.concatenate([observation, action])
        for weight, bias in weights[:-1]:
            x = jax.nn.relu(x @ weight + bias)
        return (x @ weights[-1][0] + weights[-1][1])[0]

    @jax.jit
    @jax.vmap
    def row(observation):
        action, pull = jax.vjp(lambda params: mu(params, observation), state.actor["params"])
        return pull(jax.grad(q, argnums=1)(observation, action))[0]

    expected = jax.tree.map(lambda g: -np.mean(g, 0), row(data.observation))
    got = jax.tree.map(lambda m: np.asarray(m) / 0.1, new.actor_optimizer[-1].mu)
    close(got, expected, atol=2e-6)


def test_the_batch_gradient_is_the_mean_of_the_rows_gradients():
    agent, state = start()
    data = batch(rows=6)
    whole = update(agent, state, data)[0].critic_optimizer[-1].mu
    rows = [update(agent, state, jax.tree.map(lambda x, i=i: x[i : i + 1], data))[0] for i in range(6)]
    mean = jax.tree.map(lambda *g: np.mean(g, 0), *(row.critic_optimizer[-1].mu for row in rows))
    close(whole, mean, atol=1e-6)


@pytest.mark.parametrize(("rows", "microbatch_size"), [(24, 8), (1024, 0), (1025, 0)])
def test_microbatches_change_nothing_but_the_rounding(rows, microbatch_size):
    """Also where the size is chosen: 1024 rows are cut, 1025 cannot be cut into 256 to 512."""
    data, states = batch(rows=rows), []
    for size in (rows, microbatch_size):
        config = dataclasses.replace(CONFIG, batch_size=rows, microbatch_size=size, max_grad_norm=0.1)
        config = dataclasses.replace(config, critic=dataclasses.replace(CONFIG.critic, weight_decay=0.1))
        _, state = start(CONFIG)
        traced = FUNCTIONS["update"].trace(config, jax.random.key(0), CLOCK, state, data)
        cut = "scan[" in str(traced.jaxpr)
        assert cut == (size != rows and rows != 1025)
        if rows != 1025:
            states.append(update(make(config), state, data))
    if states:
        close(*states, rtol=1e-3, atol=2e-6)


def test_a_batch_normalized_batch_is_never_cut():
    config = dataclasses.replace(BATCH_NORM, batch_size=1024)
    _, state = start(BATCH_NORM)
    traced = FUNCTIONS["update"].trace(config, jax.random.key(0), CLOCK, state, batch(rows=1024))
    assert "scan[" not in str(traced.jaxpr)


def test_one_update_is_one_step_of_each_optimizer_and_one_soft_update():
    agent, state = start()
    for count in (1, 2, 3):
        before = state
        state, _ = update(agent, state, batch(count))
        assert state.actor_optimizer[-1].count == state.critic_optimizer[-1].count == count
        for target, online in (("target_actor", "actor"), ("target_critic", "critic")):
            old, new = host(getattr(before, target)), host(getattr(state, online))
            close(getattr(state, target), jax.tree.map(lambda t, o: 0.95 * t + 0.05 * o, old, new), atol=1e-6)


def test_a_neutral_bound_changes_nothing_and_a_tight_one_holds():
    agent, state = start()
    free = update(agent, state, batch())[0]
    loose = update(make(dataclasses.replace(CONFIG, max_grad_norm=1e6)), state, batch())[0]
    assert same(free, loose)
    bound = 1e-3
    tight = update(make(dataclasses.replace(CONFIG, max_grad_norm=bound)), state, batch())[0]
    for optimizer in (tight.actor_optimizer, tight.critic_optimizer):
        norm = np.sqrt(sum(np.sum((np.asarray(m) / 0.1) ** 2) for m in jax.tree.leaves(optimizer[-1].mu)))
        assert norm == pytest.approx(bound, rel=1e-3)


def test_learning_rates_follow_the_clock():
    config = dataclasses.replace(
        CONFIG, learning_rate_decay_steps=100.0, final_actor_learning_rate=0.0, final_critic_learning_rate=0.0
    )
    agent, state = start(config)
    full, half, none = (update(agent, state, batch(), CLOCK.replace(step=np.uint32(step)))[0] for step in (0, 50, 100))
    for name in ("actor", "critic"):
        before = host(getattr(state, name))
        whole, part = (jax.tree.map(np.subtract, host(getattr(new, name)), before) for new in (full, half))
        if name == "critic":
            close(part, jax.tree.map(lambda x: x / 2, whole), atol=1e-6)
        assert same(getattr(none, name), getattr(state, name))


def test_the_reward_scale_scales_what_is_learned_but_not_what_is_reported():
    scaled, state = start(dataclasses.replace(CONFIG, reward_scale=0.1))
    agent, _ = start()
    data = batch()
    for_scaled, _ = update(scaled, state, data)
    for_plain, _ = update(agent, state, data.replace(reward=0.1 * data.reward))
    assert all(
        np.allclose(a, b, atol=1e-6)
        for a, b in zip(jax.tree.leaves(for_scaled), jax.tree.leaves(for_plain), strict=True)
    )
    observation = data.observation
    np.testing.assert_allclose(
        scaled.value(state, observation), np.asarray(agent.value(state, observation)) / 0.1, rtol=1e-5
    )


def test_batch_normalization_divides_who_changes_what():
    _, state = start(BATCH_NORM)
    frozen = dataclasses.replace(BATCH_NORM, actor_learning_rate=0.0, critic_learning_rate=0.0)
    new, _ = update(make(frozen), state, batch())
    assert same(new.actor["params"], state.actor["params"])
    assert same(new.critic["params"], state.critic["params"])
    # Each network's averages move once, towards the batch: mean 0 + 0.01 * batch mean.
    mean = 0.01 * batch().observation.mean(0)
    for network in (new.actor, new.critic):
        np.testing.assert_allclose(network["batch_stats"]["BatchNorm_0"]["mean"], mean, rtol=1e-4)


def test_batch_normalized_targets_follow_as_a_whole():
    agent, state = start(BATCH_NORM)
    new, _ = update(agent, state, batch())
    for target, before, online in (
        (new.target_actor, state.target_actor, new.actor),
        (new.target_critic, state.target_critic, new.critic),
    ):
        assert "batch_stats" in target
        close(target, jax.tree.map(lambda t, o: 0.95 * t + 0.05 * o, host(before), host(online)), atol=1e-6)


def shifted(variables):
    """The same network with other running averages."""
    return {**variables, "batch_stats": jax.tree.map(lambda x: x * 3 + 1, host(variables["batch_stats"]))}


def test_learning_does_not_see_the_online_running_averages():
    """Neither the critic in its own step, nor the actor, nor the critic under the actor."""
    agent, state = start(BATCH_NORM)
    expected, metrics = update(agent, state, batch())
    moved = state.replace(actor=shifted(state.actor), critic=shifted(state.critic))
    got, moved_metrics = update(agent, moved, batch())
    assert same(expected.actor["params"], got.actor["params"])
    assert same(expected.critic["params"], got.critic["params"])
    assert metrics["actor_loss"] == moved_metrics["actor_loss"]


@pytest.mark.parametrize("name", ["target_actor", "target_critic"])
def test_targets_are_normalized_by_the_batch_of_successors(name):
    agent, state = start(BATCH_NORM)
    loss = update(agent, state, batch())[1]["critic_loss"]
    moved = state.replace(**{name: shifted(getattr(state, name))})
    assert update(agent, moved, batch())[1]["critic_loss"] == loss
    # Seen as a shifted and stretched batch, the successors are the same to an input normalized by the batch.
    stretched = batch().replace(next_observation=3 * batch().next_observation - 5)
    assert update(agent, state, stretched)[1]["critic_loss"] == pytest.approx(float(loss), rel=1e-3)


def test_acting_and_predicting_change_nothing_and_see_one_row_at_a_time():
    agent, state = start(BATCH_NORM)
    state, _ = update(agent, state, batch())
    observation = batch(3).observation
    np.testing.assert_allclose(agent.act(state, observation)[:1], agent.act(state, observation[:1]), atol=1e-6)
    np.testing.assert_allclose(agent.value(state, observation)[:1], agent.value(state, observation[:1]), atol=1e-6)


def test_batch_normalized_members_are_independent():
    agent = make(BATCH_NORM)
    members = [host(agent.init(jax.random.key(seed))) for seed in range(3)]
    states, data = (jax.tree.map(lambda *x: np.stack(x), *trees) for trees in (members, map(batch, range(3))))
    observation = batch(3).observation

    @jax.jit
    def acted(states, data):
        together, _ = jax.vmap(lambda s, d: update(agent, s, d))(states, data)
        return jax.vmap(agent.act, (0, None))(together, observation)

    alone, _ = update(agent, members[1], batch(1))
    # Compared by what they do: a bias before a normalization has no gradient, and Adam turns its rounding into steps.
    np.testing.assert_allclose(acted(states, data)[1], agent.act(alone, observation), atol=1e-4)


def test_a_small_actor_step_raises_the_value_of_a_fixed_critic():
    agent, state = start(dataclasses.replace(CONFIG, actor_learning_rate=1e-4, critic_learning_rate=0.0))
    new, metrics = update(agent, state, batch())
    _, after = update(agent, new, batch())
    assert after["actor_loss"] < metrics["actor_loss"]


def test_an_optimistic_critic_is_seen():
    """The promise at the start exceeds the outcome where the critic's last bias says so."""
    environment = probes.reward_then_end(1.0)
    agent = ddpg(environment, CONFIG)
    state = jax.jit(agent.init)(jax.random.key(0))
    params = host(state.critic["params"])
    params = {**params, "Dense_2": {**params["Dense_2"], "bias": params["Dense_2"]["bias"] + 50.0}}
    state = state.replace(critic={"params": params})

    @jax.jit
    def evaluated(state):
        act, value = partial(agent.act, state), partial(agent.value, state)
        return evaluate(jax.random.key(0), environment, act, value, agent.gamma, num_episodes=4)

    metrics = evaluated(state)
    assert metrics["discounted_return_mean"] == 1.0
    assert metrics["q_start_mean"] > 45


@pytest.mark.slow
def test_the_actor_finds_the_argmax_of_a_concave_quadratic():
    best = (0.3, -0.6)
    environment = probes.quadratic(best)
    agent = ddpg(environment, DDPG(critic=Critic(hidden_sizes=(64, 64)), actor=Actor(hidden_sizes=(16,))))
    observation = jnp.zeros((64, 1))

    def step(state, key):
        action = jax.random.uniform(key, (64, 2), minval=-1, maxval=1)
        reward = -jnp.sum((action - jnp.array(best)) ** 2, -1)
        data = Transition(observation, action, reward, observation, jnp.zeros(64))
        return agent.update(key, CLOCK, state, data)[0], None

    state = agent.init(jax.random.key(0))
    state, _ = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 3_000))
    np.testing.assert_allclose(agent.act(state, observation[0]), best, atol=0.05)
    assert abs(agent.value(state, observation[0])) < 0.02


def test_the_bound_may_be_infinite_and_the_decay_never_end():
    assert CONFIG.max_grad_norm == CONFIG.learning_rate_decay_steps == inf
    agent, state = start()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(update(agent, state, batch())[0]))
