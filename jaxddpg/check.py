"""Numerical self-tests with known answers, to verify results on a given accelerator.

Each check runs the package's own functions and compares the result with a closed form or a float64 NumPy reference.
Later checks rely on earlier ones.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxddpg import settings
from jaxddpg.agents.copdac import copdac
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.envs import goddard, silver2014
from jaxddpg.envs.episodic import episodic
from jaxddpg.parts import equations, features, noise, replay
from jaxddpg.parts.networks import Actor
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.types import Agent, Clock, Environment, Key, Noise, Replay, Transition


class Case(NamedTuple):
    """What a rung compares."""

    name: str
    computed: Any
    exact: Any
    bound: float
    """on the largest |computed - exact|"""


class Check(NamedTuple):
    """The outcome of a case, shown where its error is largest."""

    name: str
    dtype: str
    computed: float
    exact: float
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        """False too where the error is not a number."""
        return self.error <= self.bound


def self_test() -> Iterator[Check]:
    """Runs all checks in float32, and the exact ones again in float64 if the device supports it.

    Matrix products are as precise as in training for those that are estimated, and of the highest precision otherwise.
    """
    for rung in ESTIMATED:
        yield from map(compare, rung())
    with jax.default_matmul_precision("highest"):
        for rung in EXACT:
            yield from map(compare, rung())
        if jax.default_backend() != "tpu":
            with jax.enable_x64(True):
                for rung in EXACT:
                    yield from map(compare, rung())


def compare(case: Case) -> Check:
    """Compares a case; returns the element with the largest error."""
    computed = np.ravel(np.asarray(case.computed))
    exact = np.broadcast_to(np.asarray(case.exact, np.float64), np.shape(case.computed)).ravel()
    error = np.abs(computed.astype(np.float64) - exact)
    worst = int(np.argmax(error))  # of a NaN, if there is one
    return Check(
        case.name, str(computed.dtype), float(computed[worst]), float(exact[worst]), float(error[worst]), case.bound
    )


def _epsilon() -> float:
    """The rounding error of one operation in the precision of the running rung."""
    return float(jnp.finfo(jnp.zeros(()).dtype).eps)


def exploration() -> Iterator[Case]:
    """Ornstein-Uhlenbeck noise has the moments and the memory that theory gives it; bounds are five standard errors."""
    smoothing, scale, num_walks, num_steps = 0.85, 0.2, 2**16, 40
    process = noise.ornstein_uhlenbeck(smoothing, scale)
    clock = Clock(np.uint32(0), np.uint32(0), num_walks)

    def step(state: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        return process.sample(key, clock, state)

    start = process.init(jax.random.key(0), (num_walks, 1))
    _, walks = jax.jit(lambda keys: jax.lax.scan(step, start, keys))(jax.random.split(jax.random.key(1), num_steps))
    walks = np.asarray(walks[..., 0], np.float64)  # [steps, walks]
    steps = np.arange(1, num_steps + 1)
    deviation = scale * np.sqrt((1 - smoothing ** (2 * steps)) / (1 - smoothing**2))
    error = 5 * deviation.max() / np.sqrt(num_walks)
    yield Case("OU noise: mean", walks.mean(1), 0.0, error)
    yield Case("OU noise: deviation", walks.std(1), deviation, error / 2**0.5)
    last = walks[num_steps // 2 :]
    correlation = np.mean(last[0] * last, axis=1) / np.mean(last[0] ** 2)
    decay = smoothing ** np.arange(len(last))
    yield Case("OU noise: autocorrelation", correlation, decay, 5 / np.sqrt(num_walks))


def target_networks() -> Iterator[Case]:
    """Soft updates answer a step of the online network like a low-pass filter."""
    tau, num_updates = 0.005, 1000

    def follow(target: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        target = equations.soft_update(target, jnp.ones(()), tau)
        return target, target

    _, response = jax.jit(lambda: jax.lax.scan(follow, jnp.zeros(()), length=num_updates))()
    exact = 1 - (1 - tau) ** np.arange(1, num_updates + 1)
    yield Case("soft update: response", response, exact, 100 * _epsilon())


def offset_observations() -> Iterator[Case]:
    """Batch normalization finds the moments of observations that lie far from zero: half 9,999, half 10,001."""
    actor = Actor(action_size=1, hidden_sizes=(2,), normalization="batch", final_bound=1.0)
    rows = 10_000.0 + jnp.asarray([[-1.0], [1.0]] * 128)

    @jax.jit
    def learn(rows: jax.Array) -> Any:
        variables = actor.init(jax.random.key(0), rows)
        return actor.apply(variables, rows, train=True, mutable=["batch_stats"])[1]

    moved = learn(rows)["batch_stats"]["BatchNorm_0"]  # by 0.01 from a mean of 0 and a variance of 1
    yield Case("batch norm: mean", moved["mean"], 100.0, 1e4 * _epsilon())
    yield Case("batch norm: variance", moved["var"], 1.0, 100 * _epsilon())


def endings() -> Iterator[Case]:
    """A reward of 1 per step for ever is worth 1 / (1 - gamma), though a time limit cuts it every four steps; where a
    termination ends it every four steps, a critic that sees no time gives each step the mean value."""
    gamma, length = 0.9, 4
    constant = features.polynomial(jnp.full(1, -1.0), jnp.ones(1), order=0)

    def reward_one(terminates: bool) -> Environment:
        return episodic(
            reset=lambda key: jnp.zeros((), jnp.int32),
            step=lambda key, time, action: (time + 1, jnp.ones(()), (time + 1 == length) & terminates),
            observe=lambda time: jnp.zeros(1),
            episode_length=length,
            observation_size=1,
            action_size=1,
        )

    for name, terminates, exact in (
        ("time limit: value", False, 1 / (1 - gamma)),
        ("termination: value", True, 1 / (1 - gamma * (length - 1) / length)),
    ):
        config = settings.COPDAC(gamma=gamma, actor_learning_rate=0.0, baseline_learning_rate=1.0, batch_size=length)
        training = settings.Training(num_envs=1, warmup_steps=length, steps_per_epoch=400)
        environment = reward_one(terminates)
        agent = copdac(environment, constant, config)
        state = _trained(environment, agent, noise.gaussian(0.0), replay.latest(length), training)
        yield Case(name, agent.value(state.agent, jnp.zeros(1)), exact, 100 * _epsilon())


def compatible_critic() -> Iterator[Case]:
    """A step of COPDAC-Q is that of explicit matrices, and there is none without exploration."""
    config = settings.COPDAC(
        actor_learning_rate=1.0,
        critic_learning_rate=1.0,
        baseline_learning_rate=1.0,
        actor=settings.FeatureActor(squash="tanh"),
    )
    low, high = jnp.full(2, -1.0), jnp.ones(2)
    agent = copdac(silver2014.puddle_world(), features.polynomial(low, high, order=2), config)
    clock = Clock(np.uint32(0), np.uint32(0), 1)
    keys = iter(jax.random.split(jax.random.key(2), 9))

    def random(like: jax.Array) -> jax.Array:
        return jax.random.uniform(next(keys), like.shape, minval=-1.0, maxval=1.0)

    state = jax.tree.map(random, agent.init(next(keys)))
    observation, action, reward, after = (random(jnp.zeros(shape)) for shape in ((1, 2), (1, 2), (1,), (1, 2)))
    batch = Transition(observation, action, reward, after, jnp.full(1, 0.9))
    update = jax.jit(lambda state, batch: agent.update(jax.random.key(0), clock, state, batch)[0])
    stepped = update(state, batch)

    def encode(observation: jax.Array) -> np.ndarray:
        x, y = np.asarray(observation[0], np.float64)
        return np.array([1.0, x, y, x * x, x * y, y * y])

    theta, w, v = (_flat(weights).astype(np.float64) for weights in (state.theta, state.w, state.v))
    encoding, next_encoding = encode(observation), encode(after)
    own_action = np.tanh(encoding @ theta.reshape(6, 2))
    # Weight (k, b) moves action a by (1 - tanh^2) phi_k where a = b.
    score = np.einsum("a,k,ab->akb", 1 - own_action**2, encoding, np.eye(2)).reshape(2, 12)
    compatible = score.T @ (np.asarray(action[0], np.float64) - own_action)
    error = float(reward[0]) + 0.9 * next_encoding @ v - encoding @ v - compatible @ w
    bound = 200 * _epsilon()
    yield Case("COPDAC-Q: step of theta", _flat(stepped.theta), theta + score.T @ (score @ w), bound)
    yield Case("COPDAC-Q: step of w", _flat(stepped.w), w + error * compatible, bound)
    yield Case("COPDAC-Q: step of v", _flat(stepped.v), v + error * encoding, bound)
    still = update(state, batch.replace(action=agent.act(state, observation)))
    yield Case("COPDAC-Q: on policy", _flat(still.w), w, bound)


def policy_gradient() -> Iterator[Case]:
    """The deterministic policy gradient of a small Markov decision process is the slope of what the policy earns."""
    num_states, gamma = 3, 0.9
    generator = np.random.default_rng(0)
    slope, theta = generator.normal(size=(2, num_states))
    low, high = generator.dirichlet(np.ones(num_states), size=(2, num_states))  # where actions 0 and 1 lead

    def q(actions: Any, value: np.ndarray) -> Any:
        """Q of an action in each state, with NumPy's arrays or JAX's."""
        return slope * actions - actions**2 + gamma * (low @ value + actions * ((high - low) @ value))

    def policy(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value of each state and its discounted visits, from a uniform start."""
        actions = 1 / (1 + np.exp(-theta))
        resolvent = np.linalg.inv(np.eye(num_states) - gamma * (low + actions[:, None] * (high - low)))
        return resolvent @ q(actions, np.zeros(num_states)), resolvent.mean(0)

    value, visits = policy(theta)

    def loss(theta: jax.Array) -> jax.Array:
        return equations.actor_loss(num_states * visits * q(jax.nn.sigmoid(theta), value))

    nudges = 1e-5 * np.eye(num_states)
    slopes = [(policy(theta + nudge)[0].mean() - policy(theta - nudge)[0].mean()) / 2e-5 for nudge in nudges]
    gradient = -jax.jit(jax.grad(loss))(jnp.asarray(theta))
    yield Case("policy gradient: slopes", gradient, slopes, 1e-9 + 20 * _epsilon())


def regulator() -> Iterator[Case]:
    """On a linear-quadratic regulator both learners find the gain and the value of the Riccati equation."""
    keep, push, effort, gamma = 0.9, 0.5, 0.5, 0.9
    curvature = 0.0
    for _ in range(1000):
        gain = gamma * curvature * keep * push / (effort + gamma * curvature * push**2)
        curvature = 1 + effort * gain**2 + gamma * curvature * (keep - push * gain) ** 2

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        reward = -(state**2) - effort * action[0] ** 2
        return keep * state + push * action[0], reward, jnp.zeros((), bool)

    environment = episodic(
        reset=lambda key: jax.random.uniform(key, minval=-1.0, maxval=1.0),
        step=step,
        observe=lambda state: state[None],
        episode_length=8,
        observation_size=1,
        action_size=1,
    )
    start = jnp.linspace(-1.0, 1.0, 5)[:, None]

    def cases(name: str, agent: Agent, state: Any, bound: float) -> Iterator[Case]:
        yield Case(f"{name}: gain", agent.act(state, start)[:, 0], -gain * start[:, 0], bound)
        values = agent.value(state, start) - agent.value(state, jnp.zeros(1))
        yield Case(f"{name}: value", values, -curvature * start[:, 0] ** 2, bound)

    num_envs, rows = 32, 32 * environment.episode_length  # a batch of whole episodes
    training = settings.Training(num_envs=num_envs, warmup_steps=environment.episode_length, steps_per_epoch=1000)
    quadratic = features.polynomial(jnp.full(1, -1.0), jnp.ones(1), order=2)
    linear = copdac(
        environment,
        quadratic,
        settings.COPDAC(critic="regression", gamma=gamma, actor_learning_rate=0.2, batch_size=rows),
    )
    state = _trained(environment, linear, noise.gaussian(0.01), replay.latest(rows), training).agent
    yield from cases("COPDAC-Q", linear, state, 1e-2)

    training = settings.Training(num_envs=num_envs, warmup_steps=100, steps_per_epoch=4000)
    deep = ddpg(
        environment,
        settings.DDPG(
            gamma=gamma,
            tau=0.02,
            batch_size=128,
            learning_rate_decay_steps=num_envs * 4000,
            actor=settings.Actor((32, 32)),
            critic=settings.Critic((32, 32)),
        ),
    )
    state = _trained(environment, deep, noise.gaussian(0.3), replay.uniform(num_envs * 1000), training).agent
    yield from cases("DDPG", deep, state, 0.1)


def parallel() -> Iterator[Case]:
    """Environments side by side are environments alone, and so are members."""
    for name, environment in (
        ("mountain car", silver2014.mountain_car()),
        ("pendulum", silver2014.pendulum()),
        ("puddle world", silver2014.puddle_world()),
        ("rocket", goddard.rocket()),
    ):

        def play(key: Key, environment: Environment = environment) -> jax.Array:
            def step(state: Any, key: Key) -> tuple[Any, jax.Array]:
                action = jax.random.uniform(key, (environment.action_size,), minval=-1.0, maxval=1.0)
                state, time_step = environment.step(key, state, action)
                return state, time_step.observation

            state, _ = environment.reset(key)
            return jax.lax.scan(step, state, jax.random.split(key, 50))[1]

        keys = jax.random.split(jax.random.key(3), 8)
        alone = np.stack([jax.jit(play)(key) for key in keys])
        yield Case(f"parallel: {name}", jax.jit(jax.vmap(play))(keys), alone, 100 * _epsilon())


def _trained(
    environment: Environment, agent: Agent, exploration: Noise, memory: Replay, training: settings.Training
) -> Any:
    """The state of a learner after one epoch."""
    trainer = make_trainer(environment, agent, exploration, memory, training)

    @jax.jit
    def learn(key: Key) -> Any:
        return trainer.epoch(key, clock_at(training, 1), trainer.init(key))[0]

    return learn(jax.random.key(0))


def _flat(weights: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(weights)[0])


ESTIMATED = (exploration, regulator)
EXACT = (target_networks, offset_observations, endings, compatible_critic, policy_gradient, parallel)
