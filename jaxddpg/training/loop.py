"""The loop of one member, written once: it knows no agent and no environment library.

    warm-up:  vector steps of random actions, no learning
    epoch:    chunks of cycles of updates from the replay, then vector steps with exploration

Phases are structure, never a condition. After each chunk a learner whose numbers are not finite is put back to where
the chunk began, and stays there. The key of a vector step is folded from the member's key and the step's number
alone, so the length of an epoch, evaluations and interruptions never change what is learned.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxddpg import settings
from jaxddpg.parts import sharding as shards
from jaxddpg.training.evaluation import Total, evaluate
from jaxddpg.types import (
    Agent,
    Clock,
    Environment,
    Experience,
    Key,
    Metrics,
    Noise,
    Replay,
    Scalar,
    State,
    TimeStep,
    Trainer,
    Transition,
)

UPDATES_PER_CHUNK = 50
"""About so many updates from one look at all parameters to the next, which then costs nothing to speak of."""


class Health(PyTreeNode):
    """Whether all numbers of a member are finite; what was not first stays."""

    reason: jax.Array
    """uint8: index into `REASONS`"""
    step: jax.Array
    """uint32: the vector step at which it was seen"""

    REASONS: ClassVar = ("", "observation", "reward", "loss", "parameter", "start")
    """A start is the first observation of an episode. A loss stands for everything that an update measures: values and
    gradients, too."""
    FUNCTIONS: ClassVar = {"start": "reset", "observation": "step", "reward": "step"}
    """Of the environment, which give what is watched."""

    def watched(self, clock: Clock, **values: Any) -> "Health":
        """With a look at pytrees of arrays by reason."""
        reason = self.reason
        for name, tree in values.items():
            finite = reduce(jnp.logical_and, (jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)))
            reason = jnp.where((reason > 0) | finite, reason, jnp.uint8(self.REASONS.index(name)))
        return Health(reason, jnp.where(self.diverged | (reason == 0), self.step, clock.step))

    def shared(self) -> "Health":
        """What was first not finite in any shard."""
        first = jax.lax.pmin(jnp.where(self.diverged, self.step, jnp.uint32(2**32 - 1)), shards.AXIS)
        reason = jax.lax.pmax(jnp.where(self.diverged & (self.step == first), self.reason, jnp.uint8(0)), shards.AXIS)
        return Health(reason, jnp.where(reason > 0, first, jnp.uint32(0)))

    @property
    def diverged(self) -> jax.Array:
        """bool"""
        return self.reason > 0


class TrainingState(PyTreeNode):
    """Everything that one member carries from step to step; no key and no counter, which follow from seed and clock."""

    agent: State
    environment: State
    """of each of the N environments"""
    observation: jax.Array
    """[N, O]"""
    noise: State
    replay: State
    episode_return: Total
    """[N] of the running training episodes"""
    health: Health


class Streams(NamedTuple):
    """The independent purposes of a member's key."""

    init: Key
    interaction: Key
    learning: Key
    evaluation: Key
    gauging: Key


def streams(key: Key) -> Streams:
    """Splits a member's key by purpose."""
    return Streams(*jax.random.split(key, len(Streams._fields)))


def clock_at(config: settings.Training, epoch: int) -> Clock:
    """The clock at the first vector step of an epoch; epoch 0 is the warm-up, learning starts with epoch 1."""
    step = config.warmup_steps + (epoch - 1) * config.steps_per_epoch if epoch else 0
    return Clock(np.uint32(epoch), np.uint32(step), config.num_envs, config.num_shards)


def make_trainer(
    environment: Environment,
    agent: Agent,
    noise: Noise,
    replay: Replay,
    config: settings.Training = settings.Training(),
    evaluation: settings.Evaluation = settings.Evaluation(),
) -> Trainer:
    """The trainer of one member from its parts; where `config.num_shards` is above 1, of one of its shards, under the
    axis `shards.AXIS`, with a replay of its part of the rows."""
    num_envs, batch_size = config.num_envs // config.num_shards, agent.batch_size // config.num_shards
    sharded = config.num_shards > 1
    updates, period = config.updates_per_step.as_integer_ratio()
    cycles = config.steps_per_epoch // period
    chunk_cycles = _nearest_divisor(cycles, UPDATES_PER_CHUNK / updates)

    def apart(key: Key) -> Key:
        """A key of this shard's own."""
        return jax.random.fold_in(key, jax.lax.axis_index(shards.AXIS)) if sharded else key

    def init(key: Key) -> TrainingState:
        init_key, interaction_key, *_ = streams(key)
        agent_key, environment_key, noise_key = jax.random.split(init_key, 3)
        interaction_key, environment_key, noise_key = map(apart, (interaction_key, environment_key, noise_key))
        environment_state, observation = jax.vmap(environment.reset)(jax.random.split(environment_key, num_envs))
        health = Health(jnp.zeros((), jnp.uint8), jnp.zeros((), jnp.uint32))
        state = TrainingState(
            agent=agent.init(agent_key),
            environment=environment_state,
            observation=observation,
            noise=noise.init(noise_key, (num_envs, environment.action_size)),
            replay=replay.init(_example(environment)),
            episode_return=Total.zeros(num_envs),
            health=health.watched(clock_at(config, 0), start=observation),
        )

        def random_step(state: TrainingState, clock: Clock) -> tuple[TrainingState, None]:
            action_key, key = jax.random.split(jax.random.fold_in(interaction_key, clock.step))
            action = jax.random.uniform(action_key, (num_envs, environment.action_size), minval=-1.0, maxval=1.0)
            return interact(key, clock, state, action)[0], None

        state, _ = jax.lax.scan(random_step, state, _clocks(clock_at(config, 0), config.warmup_steps))
        return state.replace(health=state.health.shared() if sharded else state.health)

    def epoch(key: Key, clock: Clock, state: TrainingState) -> tuple[TrainingState, Metrics]:
        _, interaction_key, learning_key, _, gauging_key = map(apart, streams(key))

        def exploring_step(state: TrainingState, clock: Clock) -> tuple[TrainingState, Metrics]:
            noise_key, key = jax.random.split(jax.random.fold_in(interaction_key, clock.step))
            noise_state, disturbance = noise.sample(noise_key, clock, state.noise)
            action = jnp.clip(agent.act(state.agent, state.observation) + disturbance, -1.0, 1.0)
            return interact(key, clock, state.replace(noise=noise_state), action)

        def cycle(state: TrainingState, clock: Clock) -> tuple[TrainingState, tuple[Metrics, Metrics]]:
            # Learning comes first: what is then written depends on what was read, so XLA can neither merge the two nor
            # doubt their order, and never copies the memory.
            key = jax.random.fold_in(learning_key, clock.step)
            agent_state, learning = learn(key, clock, state.agent, state.replay)
            state = state.replace(agent=agent_state, health=state.health.watched(clock, loss=learning))
            state, episodes = _scan(exploring_step, state, _clocks(clock, period))
            return state, (episodes, learning)

        def chunk(state: TrainingState, clock: Clock) -> tuple[TrainingState, tuple[Metrics, Metrics]]:
            before = state.agent
            state, metrics = jax.lax.scan(cycle, state, _clocks(clock, chunk_cycles, period))
            health = state.health.watched(clock.after(chunk_cycles * period - 1), parameter=state.agent)
            health = health.shared() if sharded else health
            # The replay stays: a choice between two of them would copy both.
            kept = jax.tree.map(partial(jnp.where, health.diverged), before, state.agent)
            return state.replace(agent=kept, health=health), metrics

        chunks = _clocks(clock, cycles // chunk_cycles, chunk_cycles * period)
        state, (episodes, learning) = jax.lax.scan(chunk, state, chunks)
        end = clock.after(config.steps_per_epoch)
        rows = replay.sample(jax.random.fold_in(gauging_key, clock.epoch), end, state.replay, batch_size)
        gauges = agent.gauges(state.agent, _transition(rows, agent.gamma))
        totals = jax.tree.map(jnp.sum, episodes)
        totals = jax.lax.psum(totals, shards.AXIS) if sharded else totals
        return state, totals | jax.tree.map(jnp.mean, learning) | gauges

    def interact(key: Key, clock: Clock, state: TrainingState, action: jax.Array) -> tuple[TrainingState, Metrics]:
        """One vector step with the actions [N, A], remembered; the sum of the returns of the episodes that it
        ended, and their number."""
        environment_key, noise_key = jax.random.split(key)
        environment_state, time_step = jax.vmap(environment.step)(
            jax.random.split(environment_key, num_envs), state.environment, action
        )
        rows = _experience(state.observation, action, time_step)
        episode_return = state.episode_return.plus(time_step.reward)
        health = state.health.watched(
            clock,
            observation=time_step.final_observation,
            reward=time_step.reward,
            start=time_step.observation,  # another one than the final one only where an episode begins
        )
        state = TrainingState(
            agent=state.agent,
            environment=environment_state,
            observation=time_step.observation,
            noise=noise.reset(noise_key, state.noise, rows.last),
            replay=replay.add(clock, state.replay, rows),
            episode_return=jax.tree.map(lambda x: jnp.where(rows.last, 0.0, x), episode_return),
            health=health,
        )
        return_sum = jnp.sum(jnp.where(rows.last, episode_return.value, 0.0))
        return state, {"return_sum": return_sum, "episodes_ended": jnp.sum(rows.last)}

    def learn(key: Key, clock: Clock, agent_state: State, memory: State) -> tuple[State, Metrics]:
        """The updates of one vector step, each on a batch of its own."""
        sample_key, update_key = jax.random.split(key)
        rows = replay.sample(sample_key, clock, memory, updates * batch_size)
        batches = jax.tree.map(lambda x: x.reshape(updates, batch_size, *x.shape[1:]), rows)

        def update(agent_state: State, inputs: tuple[Key, Experience]) -> tuple[State, Metrics]:
            key, rows = inputs
            return agent.update(key, clock, agent_state, _transition(rows, agent.gamma))

        return _scan(update, agent_state, (jax.random.split(update_key, updates), batches))

    def evaluate_policy(key: Key, clock: Clock, agent_state: State) -> Metrics:
        return evaluate(
            jax.random.fold_in(streams(key).evaluation, clock.epoch),
            environment,
            lambda observation: agent.act(agent_state, observation),
            lambda observation: agent.value(agent_state, observation),
            agent.gamma,
            evaluation.num_episodes,
        )

    common = ("agent", "health")
    names: dict[str, Any] = {field.name: field.name not in common for field in dataclasses.fields(TrainingState)}
    return Trainer(init, epoch, evaluate_policy, split=TrainingState(**names))


def _transition(rows: Experience, gamma: Scalar) -> Transition:
    discount = gamma * (1.0 - rows.terminated)
    return Transition(rows.observation, rows.action, rows.reward, rows.next_observation, discount)


def _experience(observation: jax.Array, action: jax.Array, time_step: TimeStep) -> Experience:
    return Experience(
        observation=observation,
        action=action,
        reward=time_step.reward,
        next_observation=time_step.final_observation,
        ending=jnp.where(time_step.terminated, 2, time_step.truncated).astype(jnp.uint8),
    )


def _example(environment: Environment) -> Experience:
    """One empty row of the replay."""
    observation, action = jnp.zeros(environment.observation_size), jnp.zeros(environment.action_size)
    return Experience(observation, action, jnp.zeros(()), observation, jnp.zeros((), jnp.uint8))


def _clocks(clock: Clock, num: int, stride: int = 1) -> Clock:
    """The clocks of `num` moments, `stride` vector steps apart, stacked to be scanned over."""
    return jax.vmap(clock.after)(jnp.arange(num, dtype=jnp.uint32) * stride)


def _nearest_divisor(number: int, wanted: float) -> int:
    """The divisor of a positive number that is nearest to another, by ratio."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return min([*small, *(number // d for d in small)], key=lambda d: abs(math.log(d / wanted)))


def _scan(body: Callable, state: State, inputs: Any) -> tuple[State, Any]:
    """`lax.scan`, or for a single input the body itself, which XLA then fuses with its surroundings."""
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        state, output = body(state, jax.tree.map(lambda x: x[0], inputs))
        return state, jax.tree.map(lambda x: x[None], output)
    return jax.lax.scan(body, state, inputs)
