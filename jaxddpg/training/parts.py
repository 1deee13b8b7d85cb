"""What a trainer is made from."""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxddpg import settings
from jaxddpg.types import Agent, Environment, Key, Noise, Replay, State, TimeStep, seed_key


def without_empty(environment: Environment) -> Environment:
    """Leaves arrays of size 0 out of the state of an environment; where there are any, the state becomes a list of the
    others. Orbax cannot store them, and JAX 0.11 crashes where one is sharded over several devices."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(environment.reset, seed_key(0))[0])
    if all(leaf.size for leaf in leaves):
        return environment

    def held(state: State) -> State:
        return [leaf for leaf in jax.tree.leaves(state) if leaf.size]

    def whole(state: State) -> State:
        rest = iter(state)
        return jax.tree.unflatten(structure, [next(rest) if x.size else jnp.zeros(x.shape, x.dtype) for x in leaves])

    def reset(key: Key) -> tuple[State, jax.Array]:
        state, observation = environment.reset(key)
        return held(state), observation

    def step(key: Key, state: State, action: jax.Array) -> tuple[State, TimeStep]:
        state, time_step = environment.step(key, whole(state), action)
        return held(state), time_step

    return environment._replace(reset=reset, step=step)


class Parts(NamedTuple):
    """The components of the training loop."""

    environment: Environment
    agent: Agent
    noise: Noise
    replay: Replay
    """Of one shard, where the member is sharded."""
    training: settings.Training
    evaluation: settings.Evaluation

    @property
    def num_envs(self) -> int:
        """N, the environments of one shard."""
        return self.training.num_envs // self.training.num_shards

    @property
    def batch_size(self) -> int:
        """B, the transitions of one shard in the batch of one update."""
        return self.agent.batch_size // self.training.num_shards

    @property
    def sharded(self) -> bool:
        """Whether the functions run under the axis `sharding.AXIS`."""
        return self.training.num_shards > 1

    @property
    def updates(self) -> int:
        """Calls of `agent.update` per cycle."""
        return self._ratio.numerator

    @property
    def period(self) -> int:
        """Vector steps per cycle."""
        return self._ratio.denominator

    @property
    def _ratio(self) -> Fraction:
        """Calls of `agent.update` per vector step."""
        return Fraction(self.training.updates_per_step) / self.agent.critic_steps

    def check(self) -> None:
        """Raises ValueError where an epoch does not end with an update, a member cannot be split into shards, or the
        replay holds no complete window after the warm-up."""
        config, num_shards = self.training, self.training.num_shards
        if config.warmup_steps < self.replay.steps:
            raise ValueError(
                f"warmup_steps is {config.warmup_steps}, but must be at least the {self.replay.steps} steps of a "
                "window of the replay"
            )
        for name, value, divisor, rule in (
            ("steps_per_epoch", config.steps_per_epoch, self.period, "vector steps between updates"),
            ("num_envs", config.num_envs, num_shards, "shards"),
            ("the batch size of the agent", self.agent.batch_size, num_shards, "shards"),
        ):
            if value % divisor:
                nearest = -(-value // divisor) * divisor
                raise ValueError(f"{name} is {value}, but must be a multiple of the {divisor} {rule}; use {nearest}")
