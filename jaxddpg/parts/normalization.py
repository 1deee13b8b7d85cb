"""Normalization of observations by running statistics, as a wrapper of an agent."""

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxddpg.parts import sharding
from jaxddpg.types import Agent, Clock, Key, Metrics, State, Transition

BOUND = 10.0
"""Normalized observations are clipped to [-BOUND, BOUND]."""


class NormalizedState(PyTreeNode):
    """The state of an agent and the statistics of all observations it has acted on; their number is the clock's."""

    agent: State
    origin: jax.Array
    """[O] mean of the first vector step. A running mean far from zero would lose small changes to rounding."""
    mean: jax.Array
    """[O] of the distances from the origin."""
    variance: jax.Array
    """[O]"""


def deviation(state: NormalizedState) -> jax.Array:
    """[O] what observations are divided by. What varies by less than the rounding of its mean counts as constant."""
    return jnp.maximum(jnp.sqrt(state.variance), 1e-6 * jnp.abs(state.origin + state.mean) + 1e-8)


def normalized(agent: Agent, observation_size: int, axis_name: str | None = None) -> Agent:
    """Makes an agent that receives observations with mean 0 and variance 1.

    The replay keeps observations as they are. All networks, targets included, read them normalized by the current
    statistics.
    Each observation that is acted on counts once, those of the warm-up too; evaluation leaves the statistics unchanged.

    Args:
        agent: its observations are replaced.
        observation_size: O
        axis_name: mapped axis over which the environments are sharded; None if they are not.
    """

    def normalize(state: NormalizedState, observation: jax.Array) -> jax.Array:
        return jnp.clip((observation - state.origin - state.mean) / deviation(state), -BOUND, BOUND)

    def normalize_batch(state: NormalizedState, batch: Transition) -> Transition:
        return batch.replace(
            observation=normalize(state, batch.observation),
            next_observation=normalize(state, batch.next_observation),
        )

    def init(key: Key) -> NormalizedState:
        zeros = jnp.zeros(observation_size)
        return NormalizedState(agent.init(key), origin=zeros, mean=zeros, variance=zeros + 1.0)

    def act(state: NormalizedState, observation: jax.Array) -> jax.Array:
        return agent.act(state.agent, normalize(state, observation))

    def value(state: NormalizedState, observation: jax.Array) -> jax.Array:
        return agent.value(state.agent, normalize(state, observation))

    def update(key: Key, clock: Clock, state: NormalizedState, batch: Transition) -> tuple[NormalizedState, Metrics]:
        inner, metrics = agent.update(key, clock, state.agent, normalize_batch(state, batch))
        return state.replace(agent=inner), metrics

    def diagnostics(state: NormalizedState, batch: Transition) -> Metrics:
        return agent.diagnostics(state.agent, normalize_batch(state, batch))

    def observe(clock: Clock, state: NormalizedState, observation: jax.Array) -> NormalizedState:
        """Merges the moments of N observations into those of all before them. Chan et al. 1979."""
        first = sharding.mean_over_shards(jnp.mean(observation, axis=0), axis_name)
        origin = jnp.where(clock.step == 0, first, state.origin)
        distance = observation - origin
        mean = sharding.mean_over_shards(jnp.mean(distance, axis=0), axis_name)
        variance = sharding.mean_over_shards(jnp.mean(jnp.square(distance - mean), axis=0), axis_name)
        share = 1.0 / (jnp.asarray(clock.step, float) + 1.0)
        difference = mean - state.mean
        statistics = {
            "origin": origin,
            "mean": state.mean + share * difference,
            "variance": (1.0 - share) * (state.variance + share * jnp.square(difference)) + share * variance,
        }
        # An observation that is not finite, or whose square is not, ends the member, whose last agent must stay finite.
        finite = jnp.all(jnp.isfinite(statistics["mean"]) & jnp.isfinite(statistics["variance"]))
        kept = {name: jnp.where(finite, value, getattr(state, name)) for name, value in statistics.items()}
        return NormalizedState(agent=agent.observe(clock, state.agent, observation), **kept)

    return agent._replace(init=init, act=act, value=value, update=update, diagnostics=diagnostics, observe=observe)
