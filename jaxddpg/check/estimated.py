"""What is estimated: the moments of the noise, and what the learners find on a problem whose solution is known."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import settings
from jaxddpg.agents.copdac import copdac
from jaxddpg.agents.d4pg import d4pg
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.agents.fasttd3 import fasttd3
from jaxddpg.agents.td3 import td3
from jaxddpg.check.case import Case
from jaxddpg.envs.episodic import episodic
from jaxddpg.parts import features, noise, replay
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.types import Agent, Clock, Environment, Key, Noise, Replay


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


GAMMA = 0.9
EPISODE = 8


def regulator() -> tuple[Environment, float, float]:
    """A linear-quadratic regulator, its optimal gain and the curvature of its value, by the Riccati equation."""
    keep, push, effort = 0.9, 0.5, 0.5
    curvature = gain = 0.0
    for _ in range(1000):
        gain = GAMMA * curvature * keep * push / (effort + GAMMA * curvature * push**2)
        curvature = 1 + effort * gain**2 + GAMMA * curvature * (keep - push * gain) ** 2

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        reward = -(state**2) - effort * action[0] ** 2
        return keep * state + push * action[0], reward, jnp.zeros((), bool)

    environment = episodic(
        reset=lambda key: jax.random.uniform(key, minval=-1.0, maxval=1.0),
        step=step,
        observe=lambda state: state[None],
        episode_length=EPISODE,
        observation_size=1,
        action_size=1,
    )
    return environment, gain, curvature


def _found(name: str, agent: Agent, state: Any, gain: float, curvature: float, bound: float) -> Iterator[Case]:
    """The gain and the value that a learner found on the regulator, beside the exact ones."""
    start = jnp.linspace(-1.0, 1.0, 5)[:, None]
    yield Case(f"{name}: gain", agent.act(state, start)[:, 0], -gain * start[:, 0], bound)
    values = agent.value(state, start) - agent.value(state, jnp.zeros(1))
    yield Case(f"{name}: value", values, -curvature * start[:, 0] ** 2, bound)


def copdac_regulator() -> Iterator[Case]:
    """COPDAC-Q finds the gain and the value of the Riccati equation."""
    (environment, gain, curvature), num_envs = regulator(), 32
    rows = num_envs * EPISODE  # a batch of whole episodes
    training = settings.Training(num_envs=num_envs, warmup_steps=EPISODE, steps_per_epoch=1000)
    quadratic = features.polynomial(jnp.full(1, -1.0), jnp.ones(1), order=2)
    config = settings.COPDAC(critic="regression", gamma=GAMMA, actor_learning_rate=0.2, batch_size=rows)
    agent = copdac(environment, quadratic, config)
    state = trained(environment, agent, noise.gaussian(0.01), replay.latest(rows), training).agent
    yield from _found("COPDAC-Q", agent, state, gain, curvature, 1e-2)


TRAINING = settings.Training(num_envs=32, warmup_steps=100, steps_per_epoch=8000)
NUMBERS: dict[str, Any] = {
    "gamma": GAMMA,
    "tau": 0.02,
    "actor_learning_rate": 3e-4,
    "critic_learning_rate": 1e-3,
    "learning_rate_decay_steps": TRAINING.env_steps,
    "batch_size": 256,
}
SIZES = (32, 32)
SUPPORT: dict[str, Any] = {"num_atoms": 51, "v_min": -5.0, "v_max": 0.0}


def _deep(name: str, make: Callable[[Environment, Any], Agent], config: Any, bound: float) -> Iterator[Case]:
    environment, gain, curvature = regulator()
    agent = make(environment, config)
    state = trained(environment, agent, noise.gaussian(0.3), replay.uniform(32_000), TRAINING).agent
    yield from _found(name, agent, state, gain, curvature, bound)


def ddpg_regulator() -> Iterator[Case]:
    """DDPG finds them, too."""
    config = settings.DDPG(**NUMBERS, actor=settings.Actor(SIZES), critic=settings.Critic(SIZES))
    yield from _deep("DDPG", ddpg, config, 0.1)


def td3_regulator() -> Iterator[Case]:
    """TD3 finds them, too, with little smoothing of the target."""
    networks: dict[str, Any] = {"actor": settings.TD3Actor(SIZES), "critic": settings.TD3Critic(SIZES)}
    yield from _deep("TD3", td3, settings.TD3(**NUMBERS, **networks, target_noise=0.05), 0.1)


def d4pg_regulator() -> Iterator[Case]:
    """D4PG finds them, too."""
    networks: dict[str, Any] = {"actor": settings.PlainActor(SIZES), "critic": settings.PlainCritic(SIZES)}
    yield from _deep("D4PG", d4pg, settings.D4PG(**NUMBERS, **SUPPORT, **networks), 0.15)


def fasttd3_regulator() -> Iterator[Case]:
    """FastTD3 finds them, too, without decay of the weights."""
    networks: dict[str, Any] = {"actor": settings.FastTD3Actor(SIZES), "critic": settings.FastTD3Critic(SIZES)}
    config = settings.FastTD3(**NUMBERS, **SUPPORT, **networks, decoupled_weight_decay=0.0)
    yield from _deep("FastTD3", fasttd3, config, 0.15)


def trained(
    environment: Environment, agent: Agent, exploration: Noise, memory: Replay, training: settings.Training
) -> Any:
    """The state of a learner after one epoch."""
    trainer = make_trainer(environment, agent, exploration, memory, training)

    @jax.jit
    def learn(key: Key) -> Any:
        return trainer.epoch(key, clock_at(training, 1), trainer.init(key))[0]

    return learn(jax.random.key(0))


ESTIMATED = (exploration, copdac_regulator, ddpg_regulator, td3_regulator, d4pg_regulator, fasttd3_regulator)
