import dataclasses
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import probes
import pytest
from helpers import slow

from jaxddpg.config.build import make_agent
from jaxddpg.envs.episodic import episodic
from jaxddpg.parts import noise, replay
from jaxddpg.settings import COPDAC, Baseline, FeatureActor, Polynomial, Tiles, Training
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.types import Clock, Environment, Noise, Transition

CLOCK = Clock(np.uint32(1), np.uint32(0), num_envs=1)
LOW, HIGH = (-1.5, 0.0), (0.5, 4.0)
RATES = {"theta": 0.3, "w": 0.2, "v": 0.15, "u": 0.25}
CONFIG = COPDAC(
    gamma=0.9,
    actor_learning_rate=RATES["theta"],
    critic_learning_rate=RATES["w"],
    baseline_learning_rate=RATES["v"],
    correction_learning_rate=RATES["u"],
    features=Polynomial(LOW, HIGH, order=1),
)
TILES = Tiles(LOW, HIGH, num_tilings=3, num_tiles=4)
POLICIES = {
    "linear": FeatureActor(),
    "tanh": FeatureActor(squash="tanh"),
    "network": FeatureActor((4,)),
    "deep_tanh": FeatureActor((4, 3), "tanh"),
}
EACH_POLICY = ["linear", "tanh", slow("network"), "deep_tanh"]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def plain_environment(actions=2):
    return Environment(None, None, observation_size=2, action_size=actions, episode_length=1)


def batch(seed=0, rows=12, actions=2):
    """Rows to learn from, some of them terminated, with actions that policies may take or not."""
    rng = np.random.default_rng(seed)
    seen, after = (rng.uniform(LOW, HIGH, (rows, 2)) for _ in range(2))
    discount = 0.9 * (rng.random(rows) > 0.3)
    return Transition(seen, rng.uniform(-1, 1, (rows, actions)), rng.normal(size=rows), after, discount)


def single(tree):
    """The same in the precision in which agents live."""
    return jax.tree.map(np.float32, tree)


def jitted(name):
    """A function of the agent that settings describe. One program serves all their numbers, and all tests."""

    @partial(jax.jit, static_argnums=0)
    def function(actions, config, *arguments):
        return getattr(make_agent(plain_environment(actions), config), name)(*arguments)

    return function


FUNCTIONS = {name: jitted(name) for name in ("init", "act", "value", "update")}


def make(config=CONFIG, actions=2):
    """The agent, with functions that are compiled once for all settings of the same shapes."""
    agent = make_agent(plain_environment(actions), config)
    return agent._replace(**{name: partial(function, actions, config) for name, function in FUNCTIONS.items()})


def start(config=CONFIG, actions=2, seed=0):
    """The agent, and a state with all weights drawn, so that none is neutral and mixing them up shows."""
    agent = make(config, actions)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    state = jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape), shapes)
    return agent, state if jax.config.jax_enable_x64 else single(state)


def update(agent, state, data):
    return agent.update(jax.random.key(0), CLOCK, state, data)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def encode(config):
    """The features of one observation, by hand."""
    section = config.features
    if isinstance(section, Tiles):
        return lambda s: oracles.tile_coding(s, LOW, HIGH, section.num_tilings, section.num_tiles)
    return lambda s: oracles.monomials(s, np.array(LOW), np.array(HIGH), section.order)


def functions(config, actions=2):
    """The policy and the value of flat weights, by hand."""
    features = encode(config)

    def policy(theta, s):
        output = oracles.sigmoid_network(theta, features(s), config.actor.hidden_sizes, actions)
        return np.tanh(output) if config.actor.squash == "tanh" else output

    return policy, lambda v, s: oracles.sigmoid_network(v, features(s), config.baseline.hidden_sizes, 1)


def oracle_of(config, state, actions=2):
    weights = (flat(getattr(state, name)) for name in ("theta", "w", "v", "u"))
    return oracles.COPDAC(*functions(config, actions), *weights, RATES, config.critic, config.gradient)


def advantage_slope(config, theta, w, s, actions=2):
    """J(s) [weights, A] and J(s)^T w [A], by hand."""
    slope = oracles.jacobian(functions(config, actions)[0], flat(theta), s)
    return slope, slope.T @ flat(w)


def q_of(agent, state, observation, action):
    """The agent's Q(s, a) at one state and action, as its update reports it for a batch of one."""
    row = Transition(observation[None], action[None], np.zeros(1), observation[None], np.zeros(1))
    return agent.update(jax.random.key(0), CLOCK, state, row)[1]["q_mean"]


def with_policy(name, **changes):
    return dataclasses.replace(CONFIG, actor=POLICIES[name], **changes)


@pytest.mark.parametrize(
    ("critic", "gradient", "features", "actions", "rows"),
    [
        ("q", "vanilla", CONFIG.features, 3, 7),
        ("q", "natural", TILES, 2, 5),
        slow("q", "vanilla", TILES, 1, 1),
        ("gq", "vanilla", TILES, 2, 5),
        slow("gq", "natural", CONFIG.features, 3, 7),
        ("gq", "vanilla", CONFIG.features, 1, 1),
    ],
    ids=lambda value: value.encoding if hasattr(value, "encoding") else str(value),
)
def test_updates_are_those_of_the_paper(float64, critic, gradient, features, actions, rows):
    """Four updates, each on a batch of its own, against equations 19 to 27 with explicit matrices."""
    config = dataclasses.replace(CONFIG, features=features, critic=critic, gradient=gradient)
    agent, state = start(config, actions)
    oracle = oracle_of(config, state, actions)
    for seed in range(4):
        data = batch(seed, rows, actions)
        state, metrics = update(agent, state, data)
        errors = oracle.update(data.observation, data.action, data.reward, data.next_observation, data.discount)
        np.testing.assert_allclose(metrics["critic_loss"], np.mean(errors**2), rtol=1e-10)
        for name in RATES:
            leaves = getattr(state, name)
            assert {leaf.dtype for leaf in jax.tree.leaves(leaves)} == {np.dtype("f8")}
            np.testing.assert_allclose(flat(leaves), getattr(oracle, name), rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(("policy", "critic"), [("tanh", "q"), slow("network", "q"), ("deep_tanh", "gq")])
def test_updates_of_networks_are_those_of_the_paper_too(float64, policy, critic):
    config = with_policy(policy, critic=critic, baseline=Baseline((5,)))
    agent, state = start(config)
    oracle = oracle_of(config, state)
    for seed in range(3):
        data = batch(seed, rows=6)
        state, _ = update(agent, state, data)
        oracle.update(data.observation, data.action, data.reward, data.next_observation, data.discount)
    for name in RATES:
        np.testing.assert_allclose(flat(getattr(state, name)), getattr(oracle, name), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("policy", "gradient"), [slow("linear", "vanilla"), ("linear", "natural"), ("tanh", "vanilla")]
)
def test_the_regression_is_the_least_squares_of_the_batch_and_the_policy_follows_it_at_once(float64, policy, gradient):
    config = with_policy(policy, critic="regression", gradient=gradient)
    agent, state = start(config)
    oracle = oracle_of(config, state)
    for seed in range(3):
        data = batch(seed, rows=60)
        state, metrics = update(agent, state, data)
        errors = oracle.update(data.observation, data.action, data.reward, data.next_observation, data.discount)
        np.testing.assert_allclose(metrics["critic_loss"], np.mean(errors**2), rtol=1e-4)
        for name in RATES:
            np.testing.assert_allclose(flat(getattr(state, name)), getattr(oracle, name), rtol=2e-4, atol=2e-5)


def test_the_regression_does_not_care_how_small_the_exploration_is():
    """In single precision: the slope of a plane, from actions close together."""
    spread = 1e-3
    config = dataclasses.replace(CONFIG, critic="regression", actor_learning_rate=1e-9)
    agent, state = start(config)
    data = single(batch(rows=60))
    mu = np.asarray(agent.act(state, data.observation))
    slope = np.array([2.0, -3.0])
    offset = spread * np.random.default_rng(0).normal(size=mu.shape)
    data = single(data.replace(action=mu + offset, reward=5 + offset @ slope, discount=0 * data.discount))
    new = state
    for _ in range(6):  # the damping holds back what such an exploration hardly shows
        new, _ = update(agent, new, data)
    for s in data.observation[:5]:
        np.testing.assert_allclose(advantage_slope(config, state.theta, new.w, s)[1], slope, rtol=0.02)
        assert encode(config)(s) @ flat(new.v) == pytest.approx(5, abs=0.01)


def test_a_regression_with_more_weights_than_rows_explains_its_batch(float64):
    """Twelve rows cannot determine the weights of tiles; those found fit as well as any do, and others stay."""
    config = dataclasses.replace(CONFIG, critic="regression", features=TILES)
    agent, state = start(config)
    data = batch()
    new, _ = update(agent, state, data)
    frozen = oracle_of(config, state)
    targets = frozen.targets(data.reward, data.next_observation, data.discount)
    frozen.w, frozen.v = flat(new.w), flat(new.v)
    fitted = [frozen.q(s, a) for s, a in zip(data.observation, data.action, strict=True)]
    np.testing.assert_allclose(fitted, targets, atol=1e-4)
    active = np.any([encode(config)(s) for s in data.observation], axis=0)
    np.testing.assert_array_equal((flat(new.v) != flat(state.v)), active)


@pytest.mark.parametrize("policy", EACH_POLICY)
def test_the_critics_slope_is_the_same_for_every_action(float64, policy):
    """Theorem 3, condition 1: dQ/da = J^T w."""
    config = with_policy(policy)
    agent, state = start(config)
    slopes = jax.jit(jax.vmap(jax.grad(partial(q_of, agent, state), argnums=1), in_axes=(None, 0)))
    for s in batch().observation[:3]:
        expected = advantage_slope(config, state.theta, state.w, s)[1]
        np.testing.assert_allclose(slopes(s, batch(1).action), np.tile(expected, (12, 1)), rtol=1e-10)


@pytest.mark.parametrize("policy", EACH_POLICY)
def test_the_policys_own_action_is_worth_the_state_value(float64, policy):
    """phi(s, mu(s)) = 0."""
    agent, state = start(with_policy(policy))

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def q_and_value(s, distance):
        return q_of(agent, state, s, agent.act(state, s) + distance), agent.value(state, s)

    q, value = q_and_value(batch().observation, 0.0)
    np.testing.assert_allclose(q, value, rtol=1e-12)
    q, value = q_and_value(batch().observation, 1.0)
    assert np.all(np.abs(q - value) > 1e-3)


def test_the_error_needs_no_action_in_the_next_state(float64):
    """delta = r + gamma V(s') - V(s) - (a - mu(s))^T J^T w, of each row."""
    agent, state = start()
    data = batch()
    for row in range(5):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], data)
        s, a = one.observation[0], one.action[0]
        after, here = (float(agent.value(state, x)[0]) for x in (one.next_observation, one.observation))
        along = (a - np.asarray(agent.act(state, s))) @ advantage_slope(CONFIG, state.theta, state.w, s)[1]
        error = one.reward[0] + one.discount[0] * after - here - along
        loss = float(update(agent, state, one)[1]["critic_loss"])
        assert loss == pytest.approx(error**2, rel=1e-9)


@pytest.mark.parametrize("policy", ["linear", "deep_tanh"])
def test_the_correction_of_gradient_q_learning_leaves_w_alone(float64, policy):
    """Of equation 25 the second term vanishes with phi(s', mu(s')); those of equations 26 and 27 do not."""
    data = batch()
    (agent, state), (gradient_agent, _) = start(with_policy(policy)), start(with_policy(policy, critic="gq"))
    plain, corrected = update(agent, state, data)[0], update(gradient_agent, state, data)[0]
    np.testing.assert_allclose(flat(plain.w), flat(corrected.w), rtol=1e-12)
    np.testing.assert_allclose(flat(plain.theta), flat(corrected.theta), rtol=1e-12)
    np.testing.assert_array_equal(flat(plain.u), flat(state.u))
    assert np.linalg.norm(flat(plain.v) - flat(corrected.v)) > 1e-3
    assert np.linalg.norm(flat(plain.u) - flat(corrected.u)) > 1e-3


def test_gradient_q_learning_projects_the_errors_on_the_compatible_features(float64):
    """With the other weights held, u goes to the least squares of delta on phi(s, a)."""
    still = {"actor_learning_rate": 0.0, "critic_learning_rate": 0.0, "baseline_learning_rate": 0.0}
    config = dataclasses.replace(CONFIG, critic="gq", correction_learning_rate=1.0, **still)
    agent, state = start(config)
    data = batch(rows=40)
    oracle = oracle_of(config, state)
    phi = np.stack([oracle.compatible(s, a) for s, a in zip(data.observation, data.action, strict=True)])
    errors = oracle.update(data.observation, data.action, data.reward, data.next_observation, data.discount)
    step = lambda _, state: agent.update(jax.random.key(0), CLOCK, state, data)[0]  # noqa: E731
    final = jax.jit(lambda state: jax.lax.fori_loop(0, 3_000, step, state))(state)
    np.testing.assert_allclose(flat(final.u), np.linalg.lstsq(phi, errors, rcond=None)[0], atol=1e-6)


@pytest.mark.parametrize("policy", EACH_POLICY)
def test_the_actors_step_is_the_gradient_of_the_frozen_critic_and_that_of_a_moving_one_is_none(float64, policy):
    """theta -> Q(s, mu_theta(s)): J J^T w where the policy inside Q stays, exactly 0 where it moves along."""
    config = with_policy(policy, actor_learning_rate=1.0)
    agent, state = start(config)
    data = batch()
    step = flat(update(agent, state, data)[0].theta) - flat(state.theta)

    def value(theta, inside):
        """Q of the batch at the actions of `theta`, the policy inside Q being `inside`."""
        action = agent.act(state.replace(theta=theta), data.observation)
        own = data.replace(action=action)
        return agent.update(jax.random.key(0), CLOCK, state.replace(theta=inside), own)[1]["q_mean"]

    frozen = jax.jit(jax.grad(value))(state.theta, state.theta)
    moving = jax.jit(jax.grad(lambda theta: value(theta, theta)))(state.theta)
    by_hand = np.mean(
        [
            slope @ along
            for slope, along in (advantage_slope(config, state.theta, state.w, s) for s in data.observation)
        ],
        0,
    )
    assert np.linalg.norm(step) > 0.01
    np.testing.assert_allclose(step, by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(flat(frozen), by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(flat(moving), 0, atol=1e-15)


@pytest.mark.parametrize(
    ("critic", "gradient"),
    [
        ("q", "vanilla"),
        slow("q", "natural"),
        ("gq", "vanilla"),
        slow("gq", "natural"),
        slow("regression", "vanilla"),
        ("regression", "natural"),
    ],
)
def test_without_exploration_neither_the_advantage_nor_the_policy_is_learned(critic, gradient):
    """a = mu(s): w never changes, and if it was 0 neither does theta. The numbers are sums of powers of two, so that
    no rounding tells the executed action from the policy's own."""
    config = dataclasses.replace(
        CONFIG, critic=critic, gradient=gradient, features=Polynomial((-1.0, -1.0), (1.0, 1.0), order=1)
    )
    agent, state = start(config)
    state = jax.tree.map(lambda x: np.round(8 * x) / 8, state)
    data = single(batch())
    data = data.replace(observation=np.round(8 * data.observation) / 8)
    data = data.replace(action=np.asarray(agent.act(state, data.observation)))
    new, _ = update(agent, state, data)
    np.testing.assert_array_equal(flat(new.w), flat(state.w))
    assert np.any(flat(new.theta) != flat(state.theta))
    state = state.replace(w=jax.tree.map(np.zeros_like, state.w), u=jax.tree.map(np.zeros_like, state.u))
    learned, first = state, flat(state.v)
    for _ in range(3):
        learned, _ = update(agent, learned, data)
    for name in ("theta", "w", "u"):
        np.testing.assert_array_equal(flat(getattr(learned, name)), flat(getattr(state, name)))
    assert np.any(flat(learned.v) != first)


@pytest.mark.parametrize("spread", [1e-8, 1e-6, 1e-5])
def test_the_regression_learns_nothing_from_what_is_only_rounding(spread):
    """In single precision a vanishing exploration must not make the slope explode that explains the errors."""
    config = dataclasses.replace(CONFIG, critic="regression", gradient="natural", actor_learning_rate=1.0)
    agent, state = start(config)
    state = state.replace(w=jax.tree.map(np.zeros_like, state.w), u=jax.tree.map(np.zeros_like, state.u))
    data = single(batch(rows=60))
    mu = np.asarray(agent.act(state, data.observation))
    data = data.replace(action=mu + np.float32(spread) * single(batch(1, rows=60).action))
    new, _ = update(agent, state, data)
    assert np.linalg.norm(flat(new.w)) < 100 * spread / np.finfo("f4").eps
    np.testing.assert_array_equal(flat(new.theta), flat(state.theta) + flat(new.w))


@pytest.mark.parametrize("policy", ["linear", "tanh"])
def test_the_natural_step_is_the_vanilla_one_freed_of_the_metric(float64, policy):
    """M^-1 (M w) = w, with M the mean of J J^T over a batch whose gradients span all weights."""
    data = batch(rows=20)
    vanilla, natural = (with_policy(policy, gradient=name, actor_learning_rate=1.0) for name in ("vanilla", "natural"))
    steps = []
    for config in (vanilla, natural):
        agent, state = start(config)
        steps.append(flat(update(agent, state, data)[0].theta) - flat(state.theta))
    slopes = [advantage_slope(vanilla, state.theta, state.w, s)[0] for s in data.observation]
    metric = np.mean([slope @ slope.T for slope in slopes], 0)
    np.testing.assert_allclose(steps[1], flat(state.w), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.solve(metric, steps[0]), steps[1], rtol=1e-8)


@pytest.mark.parametrize("features", [CONFIG.features, TILES], ids=["polynomial", "tiles"])
def test_for_a_linear_policy_the_steps_are_outer_products_with_the_features(float64, features):
    """phi(s, a) = phi(s) (x) (a - mu(s)), and the actor's step of each action is phi phi^T W."""
    config = dataclasses.replace(CONFIG, features=features)
    agent, state = start(config, actions=3)
    data = batch(rows=1, actions=3)
    new, metrics = update(agent, state, data)
    phi = encode(config)(data.observation[0])
    matrix = lambda params: np.asarray(params["params"]["features"])  # noqa: E731
    offset = data.action[0] - matrix(state.theta).T @ phi
    error = data.reward[0] + data.discount[0] * encode(config)(data.next_observation[0]) @ matrix(state.v)[:, 0]
    error -= offset @ matrix(state.w).T @ phi + phi @ matrix(state.v)[:, 0]
    assert float(metrics["critic_loss"]) == pytest.approx(error**2, rel=1e-10)
    steps = {
        "theta": np.outer(phi, phi @ matrix(state.w)),
        "w": error * np.outer(phi, offset),
        "v": error * phi[:, None],
    }
    for name, step in steps.items():
        change = matrix(getattr(new, name)) - matrix(getattr(state, name))
        np.testing.assert_allclose(change, RATES[name] * step, rtol=1e-9, atol=1e-13)


def test_in_a_quadratic_bandit_the_regression_finds_the_true_gradient(float64):
    """Actions in pairs around theta, so that the cost's curvature cancels: w = -2 C (theta - a*), v the mean reward."""
    actions, rng = 5, np.random.default_rng(0)
    root = rng.normal(size=(actions, actions))
    curvature, best = root @ root.T + 0.1 * np.eye(actions), np.full(actions, 4.0)
    constant = Polynomial((-1.0, -1.0), (1.0, 1.0), order=0)
    agent, state = start(dataclasses.replace(CONFIG, critic="regression", features=constant), actions)
    theta = flat(state.theta)
    directions = np.linalg.qr(rng.normal(size=(actions, actions)))[0]
    action = theta + 0.3 * np.concatenate([directions, -directions])
    reward = -np.einsum("bi,ij,bj->b", action - best, curvature, action - best)
    nothing = np.zeros((2 * actions, 2))
    new, _ = update(agent, state, Transition(nothing, action, reward, nothing, np.zeros(2 * actions)))
    gradient = -2 * curvature @ (theta - best)
    np.testing.assert_allclose(flat(new.w), gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(flat(new.v), reward.mean(), rtol=1e-5)
    np.testing.assert_allclose(flat(new.theta), theta + RATES["theta"] * flat(new.w), rtol=1e-12)


def test_in_a_noisily_explored_bandit_the_regression_finds_the_gradient_on_average(float64):
    """Random actions around theta: the third moments that remain have no mean."""
    curvature, best = np.diag([0.1, 1.0]), np.full(2, 4.0)
    constant = Polynomial((-1.0, -1.0), (1.0, 1.0), order=0)
    agent, state = start(dataclasses.replace(CONFIG, critic="regression", features=constant))
    theta, draws, rows = flat(state.theta), 400, 30
    offset = 0.5 * np.random.default_rng(0).normal(size=(draws, rows, 2))
    distance = theta + offset - best
    reward = -np.einsum("nbi,ij,nbj->nb", distance, curvature, distance)
    nothing = np.zeros((draws, rows, 2))
    data = Transition(nothing, theta + offset, reward, nothing, np.zeros((draws, rows)))
    new = jax.jit(jax.vmap(lambda rows: agent.update(jax.random.key(0), CLOCK, state, rows)[0]))(data)
    found = np.asarray(new.w["params"]["features"])[:, 0]
    error = found.std(0) / draws**0.5
    assert np.all(np.abs(found.mean(0) - -2 * curvature @ (theta - best)) < 4 * error)
    assert np.all(error < 0.05)


@pytest.mark.parametrize("critic", ["q", "gq"])
def test_a_neutral_bound_changes_nothing_and_a_tight_one_holds_for_each_step(critic):
    config = dataclasses.replace(CONFIG, critic=critic)
    agent, state = start(config)
    data = single(batch())
    free = update(agent, state, data)[0]
    loose = update(make(dataclasses.replace(config, max_grad_norm=1e6)), state, data)[0]
    jax.tree.map(np.testing.assert_array_equal, free, loose)
    bound = 1e-2
    tight = update(make(dataclasses.replace(config, max_grad_norm=bound)), state, data)[0]
    for name, rate in RATES.items():
        before = flat(getattr(state, name))
        bounded, unbounded = ((flat(getattr(new, name)) - before) / rate for new in (tight, free))
        if name == "u" and critic == "q":
            np.testing.assert_array_equal(bounded, 0)
            continue
        assert np.linalg.norm(unbounded) > bound
        np.testing.assert_allclose(bounded, bound * unbounded / np.linalg.norm(unbounded), atol=1e-5)


def test_the_bound_holds_for_the_actor_of_a_regression_and_of_a_natural_gradient():
    data = single(batch(rows=60))
    for changes in ({"critic": "regression"}, {"gradient": "natural"}):
        agent, state = start(dataclasses.replace(CONFIG, max_grad_norm=1e-2, **changes))
        step = (flat(update(agent, state, data)[0].theta) - flat(state.theta)) / RATES["theta"]
        assert np.linalg.norm(step) == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("critic", ["q", slow("gq"), "regression"])
def test_the_reward_scale_scales_what_is_learned_but_not_what_is_reported(critic):
    config = dataclasses.replace(CONFIG, critic=critic)
    agent, state = start(config)
    scaled = make(dataclasses.replace(config, reward_scale=0.1))
    data = single(batch(rows=60))
    for_scaled, metrics = update(scaled, state, data)
    for_plain, plain_metrics = update(agent, state, data.replace(reward=np.float32(0.1) * data.reward))
    np.testing.assert_allclose(flat(for_scaled), flat(for_plain), rtol=1e-4, atol=1e-5)
    value = np.asarray(agent.value(state, data.observation))
    np.testing.assert_allclose(scaled.value(state, data.observation), value / 0.1, rtol=1e-5)
    np.testing.assert_allclose(metrics["q_mean"], float(plain_metrics["q_mean"]) / 0.1, rtol=1e-4)


def test_the_value_of_a_scaled_learner_is_in_units_of_the_reward():
    """A reward of 5 that ends the episode is worth 5, however it is scaled inside."""
    data = single(batch())
    data = data.replace(action=0 * data.action, reward=0 * data.reward + 5, discount=0 * data.discount)

    @jax.jit
    def learned(reward_scale):
        agent = make_agent(
            plain_environment(), dataclasses.replace(CONFIG, baseline_learning_rate=0.5, reward_scale=reward_scale)
        )
        step = lambda _, state: agent.update(jax.random.key(0), CLOCK, state, data)[0]  # noqa: E731
        state = jax.lax.fori_loop(0, 500, step, agent.init(jax.random.key(0)))
        return agent.value(state, data.observation), state.v

    for reward_scale in (0.01, 1.0, 20.0):
        value, v = learned(reward_scale)
        np.testing.assert_allclose(value, 5, rtol=1e-3)
        np.testing.assert_allclose(flat(v), [5 * reward_scale, 0, 0], atol=0.01 * reward_scale)


def test_the_weights_of_a_linear_learner_start_at_zero():
    state = make().init(jax.random.key(0))
    assert flat(state.theta).size == flat(state.w).size == flat(state.u).size == 3 * 2
    assert flat(state.v).size == 3
    np.testing.assert_array_equal(flat(state), 0)


@pytest.mark.parametrize("policy", EACH_POLICY)
def test_a_learner_starts_in_the_middle_of_the_box_and_promises_nothing(policy):
    config = with_policy(policy, baseline=Baseline((5,)))
    agent, seen = make(config), single(batch().observation)
    state = agent.init(jax.random.key(0))
    np.testing.assert_array_equal(agent.act(state, seen), 0)
    np.testing.assert_array_equal(agent.value(state, seen), 0)
    np.testing.assert_array_equal(flat(state.w), 0)
    np.testing.assert_array_equal(flat(state.u), 0)
    if config.actor.hidden_sizes:
        # Hidden layers differ from each other, between observations and between seeds, or their units would all learn
        # the same.
        first = flat(state.theta)
        assert len(np.unique(first[first != 0])) == np.count_nonzero(first) > 10
        features = np.stack([encode(config)(s) for s in seen])
        units = 1 / (1 + np.exp(-features @ np.asarray(state.theta["params"]["features"])))
        assert np.all(np.std(units, axis=0) > 0.05)
        assert np.any(first != flat(agent.init(jax.random.key(1)).theta))


@pytest.mark.parametrize("policy", ["linear", "network"])
def test_a_network_that_starts_at_zero_learns(policy):
    agent = make(with_policy(policy))
    state = agent.init(jax.random.key(0))
    for seed in range(3):
        state, _ = update(agent, state, single(batch(seed)))
    assert np.all(np.any(np.asarray(agent.act(state, single(batch().observation))) != 0, axis=0))


def test_a_fresh_state_may_be_donated():
    """No buffer is held twice."""
    agent = make_agent(plain_environment(), CONFIG)
    state, _ = jax.jit(agent.update, donate_argnums=2)(
        jax.random.key(0), CLOCK, agent.init(jax.random.key(0)), jax.tree.map(jnp.asarray, single(batch()))
    )
    assert np.all(np.isfinite(flat(state)))


def test_one_observation_or_many_are_acted_on_alike():
    agent, state = start(with_policy("deep_tanh"))
    seen = single(batch().observation)
    act, value = np.asarray(agent.act(state, seen)), np.asarray(agent.value(state, seen))
    assert (act.shape, value.shape) == ((12, 2), (12,))
    for row in range(3):
        np.testing.assert_allclose(agent.act(state, seen[row]), act[row], rtol=1e-5)
        np.testing.assert_allclose(agent.value(state, seen[row]), value[row], rtol=1e-5)
    np.testing.assert_allclose(agent.act(state, seen.reshape(3, 4, 2)), act.reshape(3, 4, 2), rtol=1e-5)


def test_the_same_program_serves_every_number():
    """Built inside jit with traced numbers, the agent gives what it gives with constants."""

    @jax.jit
    def traced(config, state, data):
        agent = make_agent(plain_environment(), config)
        return agent.update(jax.random.key(0), CLOCK, state, data), agent.value(state, data.observation)

    _, state = start(dataclasses.replace(CONFIG, critic="gq"))
    data = single(batch())
    for factor in (1.0, 0.3):
        config = dataclasses.replace(
            CONFIG,
            critic="gq",
            actor_learning_rate=factor * 0.3,
            critic_learning_rate=factor * 0.2,
            baseline_learning_rate=factor * 0.1,
            correction_learning_rate=factor * 0.4,
            reward_scale=1 / factor,
            max_grad_norm=factor * 0.5,
        )
        agent = make_agent(plain_environment(), config)
        (new, metrics), value = traced(config, state, data)
        expected, expected_metrics = jax.jit(agent.update)(jax.random.key(0), CLOCK, state, data)
        np.testing.assert_allclose(flat(new), flat(expected), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value, jax.jit(agent.value)(state, data.observation), rtol=1e-5)
        for name, number in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], number, rtol=1e-4, atol=1e-6)
    assert traced._cache_size() == 1


def drift(length=4):
    """A point on a line that the action and chance move; rewarded for being near 0, ended beyond 1."""

    def step(key, place, action):
        place = place + 0.3 * action + 0.3 * jax.random.normal(key, (1,))
        return place, 1.0 - place[0] ** 2, jnp.abs(place[0]) > 1

    return episodic(
        reset=lambda key: jax.random.uniform(key, (1,), minval=-0.5, maxval=0.5),
        step=step,
        observe=lambda place: place,
        episode_length=length,
        observation_size=1,
        action_size=1,
        observation_low=-1.0,
        observation_high=1.0,
    )


ALTERNATING = Noise(
    init=lambda key, shape: jnp.zeros(shape),
    sample=lambda key, clock, state: (
        state,
        jnp.where(clock.step % 2 == 0, 0.5, -0.25) * jnp.ones(state.shape),
    ),
    reset=lambda key, state, mask: state,
)


def trained(agent, environment, training, memory, exploration=ALTERNATING, seed=0):
    """The state after the warm-up and at the end."""
    trainer = make_trainer(environment, agent, exploration, memory, training)
    key = jax.random.key(seed)
    first = jax.jit(trainer.init)(key)
    epoch, state = jax.jit(trainer.epoch), first
    for number in range(1, training.num_epochs + 1):
        state, _ = epoch(key, clock_at(training, number), state)
    return first, state


LEARNER = COPDAC(gamma=0.8, features=Polynomial(order=2), actor_learning_rate=0.05, critic_learning_rate=0.1)


@pytest.mark.parametrize(("num_envs", "updates", "batch_size"), [(1, 1, 1), slow(4, 4, 1), (4, 2, 2)])
def test_on_line_each_transition_is_learned_from_once_and_in_order(num_envs, updates, batch_size):
    """The loop's weights are those of updates by hand on the rows in the order in which they were made, the last step's
    left out; and each action is that of the weights so far, which had learned from all before."""
    environment, steps = drift(), 30
    agent = make_agent(environment, dataclasses.replace(LEARNER, batch_size=batch_size))
    training = Training(num_envs, Fraction(updates), warmup_steps=3, steps_per_epoch=steps // 2, num_epochs=2)
    first, last = trained(agent, environment, training, replay.latest(num_envs * (3 + steps)))
    rows = jax.tree.map(np.asarray, last.replay.unpack(last.replay.rows))
    assert {*rows.ending} == {0, 1, 2}, "the run should see episodes go on, be cut and end"

    step, act, state = jax.jit(agent.update), jax.jit(agent.act), first.agent
    np.testing.assert_array_equal(flat(state), 0)
    for vector_step in range(3, 3 + steps):
        for number in range(updates):
            begin = (vector_step - 1) * num_envs + number * batch_size
            row = jax.tree.map(lambda x, b=begin: x[b : b + batch_size], rows)
            discount = np.float32(0.8) * (row.ending != 2)
            data = Transition(row.observation, row.action, row.reward, row.next_observation, discount)
            state, _ = step(jax.random.key(0), CLOCK, state, data)
        now = slice(vector_step * num_envs, (vector_step + 1) * num_envs)
        disturbance = 0.5 if vector_step % 2 == 0 else -0.25
        expected = np.clip(np.asarray(act(state, rows.observation[now])) + disturbance, -1, 1)
        np.testing.assert_allclose(rows.action[now], expected, rtol=1e-4, atol=1e-5)
    assert updates * batch_size == num_envs, "or rows would be left out"
    np.testing.assert_allclose(flat(last.agent), flat(state), rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(flat(state.theta)) > 1e-3


@pytest.mark.parametrize("memory", [replay.latest(200), slow(replay.uniform(200))], ids=["latest", "uniform"])
def test_the_actor_finds_the_argmax_in_the_loop(memory):
    """Of a reward -|a - best|^2, from the newest rows as from random ones."""
    environment = probes.quadratic((0.3, -0.2))
    config = COPDAC(
        actor_learning_rate=0.01,
        critic_learning_rate=0.3,
        baseline_learning_rate=0.2,
        batch_size=10,
        features=Polynomial((0.0,), (1.0,), order=0),
    )
    agent = make_agent(environment, config)
    training = Training(num_envs=10, warmup_steps=5, steps_per_epoch=2_000, num_epochs=1)
    first, last = trained(agent, environment, training, memory, noise.gaussian(0.2))
    act = jax.jit(agent.act)
    np.testing.assert_array_equal(act(first.agent, np.zeros(1, "f4")), 0)
    np.testing.assert_allclose(act(last.agent, np.zeros(1, "f4")), [0.3, -0.2], atol=0.05)
