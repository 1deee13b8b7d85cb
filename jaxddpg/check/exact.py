"""What equals a closed form or a float64 NumPy reference to rounding."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxddpg import settings
from jaxddpg.agents.copdac import copdac
from jaxddpg.check.case import Case
from jaxddpg.check.estimated import trained
from jaxddpg.envs import goddard, silver2014
from jaxddpg.envs.episodic import episodic
from jaxddpg.parts import equations, features, noise, products, replay
from jaxddpg.parts.networks import Actor
from jaxddpg.types import Clock, Environment, Key, Transition


def _epsilon() -> float:
    """The rounding error of one operation in the precision in use."""
    return float(jnp.finfo(jnp.zeros(()).dtype).eps)


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
    """Batch normalization finds the moments of observations that lie far from zero: half 9,998, half 10,002."""
    actor = Actor(action_size=1, hidden_sizes=(2,), normalization="batch", final_bound=1.0)
    rows = 10_000.0 + jnp.asarray([[-2.0], [2.0]] * 128)

    @jax.jit
    def learn(rows: jax.Array) -> Any:
        variables = actor.init(jax.random.key(0), rows)
        return actor.apply(variables, rows, train=True, mutable=["batch_stats"])[1]

    moved = learn(rows)["batch_stats"]["BatchNorm_0"]  # by 0.01 from a mean of 0 and a variance of 1
    yield Case("batch norm: mean", moved["mean"], 100.0, 1e4 * _epsilon())
    yield Case("batch norm: variance", moved["var"], 1.03, 100 * _epsilon())


def rounded_products() -> Iterator[Case]:
    """With `agent.precision: bfloat16`, products of integers that bfloat16 rounds to even ones. Their sums stay below
    2^24, so float32 adds them exactly in any order."""
    generator = np.random.default_rng(0)
    x, kernel, gradient = generator.integers(257, 512, (3, 32, 32)) * generator.choice([-1, 1], (3, 32, 32))
    product = products.dot_general("bfloat16")

    @jax.jit
    def computed(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        result, pull = jax.vjp(lambda x, kernel: product(x, kernel, None), x, kernel)
        return result, pull(gradient)

    result, (by_x, by_kernel) = computed(*(jnp.asarray(values, float) for values in (x, kernel, gradient)))
    x, kernel, gradient = (values.astype(jnp.bfloat16).astype(float) for values in (x, kernel, gradient))
    yield Case("bfloat16: product", result, x @ kernel, 0.0)
    yield Case("bfloat16: slope of x", by_x, gradient @ kernel.T, 0.0)
    yield Case("bfloat16: slope of kernel", by_kernel, x.T @ gradient, 0.0)


def projection() -> Iterator[Case]:
    """The projected distribution of D4PG and FastTD3 is that of the triangular kernel of Bellemare et al. 2017, eq. 7,
    with rewards that move it by fractions of an atom, by whole atoms and beyond both ends."""
    v_min, v_max, num_atoms = 9_990.0, 10_010.0, 21  # one atom per unit, far from zero
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(num_atoms), size=4)
    reward, discount = np.array([0.25, 3.0, -40.0, 5_000.0]), np.array([1.0, 1.0, 1.0, 0.5])
    projected = jax.jit(equations.categorical_target)(
        *map(jnp.asarray, (probabilities, reward, discount)), v_min, v_max
    )
    atoms = np.linspace(v_min, v_max, num_atoms)
    moved = np.clip(reward[:, None] + discount[:, None] * atoms, v_min, v_max)  # [4, K]
    weights = np.maximum(1 - np.abs(moved[:, :, None] - atoms), 0)  # [4, K, K]
    yield Case("D4PG: projection", projected, np.einsum("bj,bji->bi", probabilities, weights), 1e3 * _epsilon())


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
        state = trained(environment, agent, noise.gaussian(0.0), replay.latest(length), training)
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


def parallel() -> Iterator[Case]:
    """Environments under `vmap` are equal to environments alone."""
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


def _flat(weights: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(weights)[0])


EXACT = (
    target_networks,
    offset_observations,
    rounded_products,
    projection,
    endings,
    compatible_critic,
    policy_gradient,
    parallel,
)
