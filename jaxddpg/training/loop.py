"""The training loop of one member, independent of the agent and of the environment library.

    init             reset the environments; warmup_steps times: act_randomly
    epoch            for each chunk of cycles:
                         for each cycle: learn, then `period` times explore
                         restore the learner from the start of the chunk if any value was not finite
    learn            `updates` times: sample a batch from the replay, agent.update
    explore          action = clip(agent.act + noise, -1, 1), interact
    interact         environment.step, agent.observe, replay.add, noise.reset where an episode ended
    evaluate_policy  play whole episodes by agent.act without noise

`training.updates_per_step` is the fraction updates / period, where an update counts as its gradient steps of the
critic. Phases are nested scans without conditionals. The key of a vector step is derived by folding the step index into
the member's key, so epoch length, evaluations and interruptions do not affect learning.

N is the number of environments and B the batch size, both per shard.
"""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxddpg import settings
from jaxddpg.parts import equations, sharding
from jaxddpg.training.divergence import Divergence
from jaxddpg.training.evaluation import CompensatedSum, evaluate
from jaxddpg.training.parts import Parts, without_empty
from jaxddpg.types import Agent, Clock, Environment, Experience, Key, Metrics, Noise, Replay, State, Trainer

UPDATES_PER_CHUNK = 50
"""Approximate number of updates between parameter checks, large enough to make their cost negligible."""
MAX_DIAGNOSED = 1_024
"""The most transitions that an epoch's diagnostics are computed on. They are not divided into microbatches, so those of
a large batch would need more memory than an update."""


class TrainingState(PyTreeNode):
    """The complete state of one member. PRNG keys and counters are not included; they are derived from the seed and the
    clock."""

    agent: State
    environment: State
    """Of each of the N environments."""
    observation: jax.Array
    """[N, O] to act on next."""
    noise: State
    replay: State
    episode_return: CompensatedSum
    """[N] of the running training episodes."""
    health: Divergence


class Streams(NamedTuple):
    """The independent keys of a member, one per purpose."""

    init: Key
    interaction: Key
    learning: Key
    evaluation: Key
    diagnostics: Key


def streams(key: Key) -> Streams:
    """Splits a member's key by purpose; the key is consumed."""
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
    """Makes the trainer of one member.

    With `config.num_shards` above 1 it is the trainer of one of the member's shards: its functions run under the axis
    `sharding.AXIS`, the agent averages over that axis, and the replay holds the shard's part of the capacity.

    Raises:
        ValueError: an epoch does not end with an update, or the environments or a batch cannot be split into shards.
    """
    parts = Parts(without_empty(environment), agent, noise, replay, config, evaluation)
    parts.check()
    names = [field.name for field in dataclasses.fields(TrainingState)]
    sharded: dict[str, Any] = {name: name not in ("agent", "health") for name in names}
    return Trainer(
        init=partial(init, parts),
        epoch=partial(epoch, parts),
        evaluate=partial(evaluate_policy, parts),
        sharded_axes=TrainingState(**sharded),
    )


def init(parts: Parts, key: Key) -> TrainingState:
    """Initializes the networks, resets the environments and fills the replay with random actions.

    Args:
        key: the member's key; `epoch` and `evaluate_policy` take the same key and derive other streams from it.

    Returns:
        The state after `training.warmup_steps` vector steps.
    """
    init_key, interaction_key, *_ = streams(key)
    agent_key, environment_key, noise_key = jax.random.split(init_key, 3)
    interaction_key, environment_key, noise_key = (
        shard_key(parts, key) for key in (interaction_key, environment_key, noise_key)
    )
    environment, observation = jax.vmap(parts.environment.reset)(jax.random.split(environment_key, parts.num_envs))
    clock = clock_at(parts.training, 0)
    state = TrainingState(
        agent=parts.agent.init(agent_key),
        environment=environment,
        observation=observation,
        noise=parts.noise.init(noise_key, (parts.num_envs, parts.environment.action_size)),
        replay=parts.replay.init(Experience.zeros(parts.environment)),
        episode_return=CompensatedSum.zeros(parts.num_envs),
        health=Divergence.none().update(clock, start=observation),
    )

    def warmup_step(state: TrainingState, clock: Clock) -> tuple[TrainingState, None]:
        return act_randomly(parts, jax.random.fold_in(interaction_key, clock.step), clock, state), None

    state, _ = jax.lax.scan(warmup_step, state, clock.sequence(parts.training.warmup_steps))
    return state.replace(health=state.health.sync() if parts.sharded else state.health)


def epoch(parts: Parts, key: Key, clock: Clock, state: TrainingState) -> tuple[TrainingState, Metrics]:
    """Runs `training.steps_per_epoch` vector steps, with their updates, and measures the agent at the end.

    Args:
        key: the member's key, the same in every epoch.
        clock: the clock at the first vector step of the epoch.

    Returns:
        The state, and the metrics []: those of `agent.update` averaged over the updates, `agent.diagnostics` on a batch
        at the end, and the sums of `return_sum` and `episodes_ended` over the training episodes that ended.
    """
    keys = Streams(*(shard_key(parts, stream) for stream in streams(key)))
    num_cycles = parts.training.steps_per_epoch // parts.period
    chunk_cycles = _nearest_divisor(num_cycles, UPDATES_PER_CHUNK / parts.updates)

    def one_chunk(state: TrainingState, clock: Clock) -> tuple[TrainingState, tuple[Metrics, Metrics]]:
        return chunk(parts, keys, clock, state, chunk_cycles)

    clocks = clock.sequence(num_cycles // chunk_cycles, chunk_cycles * parts.period)
    state, (episodes, learning) = jax.lax.scan(one_chunk, state, clocks)

    end = clock.after(parts.training.steps_per_epoch)
    sample_key = jax.random.fold_in(keys.diagnostics, clock.epoch)
    rows = parts.replay.sample(sample_key, end, state.replay, min(parts.batch_size, MAX_DIAGNOSED))
    rows = jax.tree.map(_unrounded, rows)
    diagnostics = parts.agent.diagnostics(state.agent, equations.transition(rows, parts.agent.gamma))
    totals = jax.tree.map(jnp.sum, episodes)
    totals = jax.lax.psum(totals, sharding.AXIS) if parts.sharded else totals
    return state, totals | jax.tree.map(jnp.mean, learning) | diagnostics


def chunk(
    parts: Parts, keys: Streams, clock: Clock, state: TrainingState, num_cycles: int
) -> tuple[TrainingState, tuple[Metrics, Metrics]]:
    """Runs cycles and restores the agent that began them if any value was not finite. The metrics are those of `cycle`,
    with a leading axis [num_cycles]."""
    before = state.agent

    def one_cycle(state: TrainingState, clock: Clock) -> tuple[TrainingState, tuple[Metrics, Metrics]]:
        return cycle(parts, keys, clock, state)

    state, metrics = jax.lax.scan(one_cycle, state, clock.sequence(num_cycles, parts.period))
    health = state.health.update(clock.after(num_cycles * parts.period - 1), parameter=state.agent)
    health = health.sync() if parts.sharded else health
    # The replay is not rolled back: selecting between two replays would copy both.
    agent = jax.tree.map(partial(jnp.where, health.diverged), before, state.agent)
    return state.replace(agent=agent, health=health), metrics


def cycle(
    parts: Parts, keys: Streams, clock: Clock, state: TrainingState
) -> tuple[TrainingState, tuple[Metrics, Metrics]]:
    """Runs the updates of one cycle, then its vector steps. The metrics are those of `explore` [period] and of `learn`
    [updates]."""
    # Update first: the replay write then depends on the read, so XLA cannot reorder them and updates the replay in
    # place.
    learning_key = jax.random.fold_in(keys.learning, clock.step)
    agent, learning = learn(parts, learning_key, clock, state.agent, state.replay)
    state = state.replace(agent=agent, health=state.health.update(clock, loss=learning))

    def exploring_step(state: TrainingState, clock: Clock) -> tuple[TrainingState, Metrics]:
        return explore(parts, jax.random.fold_in(keys.interaction, clock.step), clock, state)

    state, episodes = jax.lax.scan(exploring_step, state, clock.sequence(parts.period))
    return state, (episodes, learning)


def learn(parts: Parts, key: Key, clock: Clock, agent: State, replay: State) -> tuple[State, Metrics]:
    """Runs the updates of one cycle, each on its own batch [B]; the key is consumed. The metrics are those of
    `agent.update` [updates]."""
    sample_key, update_key = jax.random.split(key)
    rows = parts.replay.sample(sample_key, clock, replay, parts.updates * parts.batch_size)
    batches = jax.tree.map(lambda x: x.reshape(parts.updates, parts.batch_size, *x.shape[1:]), rows)

    def update(agent: State, inputs: tuple[Key, Experience]) -> tuple[State, Metrics]:
        key, rows = inputs
        return parts.agent.update(key, clock, agent, equations.transition(rows, parts.agent.gamma))

    return jax.lax.scan(update, agent, (jax.random.split(update_key, parts.updates), batches))


def explore(parts: Parts, key: Key, clock: Clock, state: TrainingState) -> tuple[TrainingState, Metrics]:
    """Takes one vector step with the noisy policy, clipped to [-1, 1]; the key is consumed."""
    noise_key, interact_key = jax.random.split(key)
    noise, disturbance = parts.noise.sample(noise_key, clock, state.noise)
    action = jnp.clip(parts.agent.act(state.agent, state.observation) + disturbance, -1.0, 1.0)
    return interact(parts, interact_key, clock, state.replace(noise=noise), action)


def act_randomly(parts: Parts, key: Key, clock: Clock, state: TrainingState) -> TrainingState:
    """Takes one vector step with actions drawn uniformly from [-1, 1]; the key is consumed."""
    action_key, interact_key = jax.random.split(key)
    shape = (parts.num_envs, parts.environment.action_size)
    action = jax.random.uniform(action_key, shape, minval=-1.0, maxval=1.0)
    return interact(parts, interact_key, clock, state, action)[0]


def interact(
    parts: Parts, key: Key, clock: Clock, state: TrainingState, action: jax.Array
) -> tuple[TrainingState, Metrics]:
    """Steps the N environments and adds the transitions to the replay.

    Args:
        key: consumed.
        clock: the clock of this vector step, which determines the replay write position.
        action: [N, A] in [-1, 1].

    Returns:
        The state, and `return_sum` [] and `episodes_ended` []: the sum of the undiscounted returns of the episodes that
        ended with this step, and their number.
    """
    environment_key, noise_key = jax.random.split(key)
    environment_keys = jax.random.split(environment_key, parts.num_envs)
    environment, time_step = jax.vmap(parts.environment.step)(environment_keys, state.environment, action)
    rows = Experience.from_time_step(state.observation, action, time_step)
    episode_return = state.episode_return.add(time_step.reward)
    health = state.health.update(
        clock,
        observation=time_step.final_observation,
        reward=time_step.reward,
        start=time_step.observation,  # differs from the final one only where an episode begins
    )
    state = TrainingState(
        agent=parts.agent.observe(clock, state.agent, state.observation),
        environment=environment,
        observation=time_step.observation,
        noise=parts.noise.reset(noise_key, state.noise, rows.last),
        replay=parts.replay.add(clock, state.replay, rows),
        episode_return=jax.tree.map(lambda x: jnp.where(rows.last, 0.0, x), episode_return),
        health=health,
    )
    return_sum = jnp.sum(jnp.where(rows.last, episode_return.value, 0.0))
    return state, {"return_sum": return_sum, "episodes_ended": jnp.sum(rows.last)}


def evaluate_policy(parts: Parts, key: Key, clock: Clock, agent: State) -> Metrics:
    """Evaluates the deterministic policy on fresh episodes for each epoch. `key` is the member's key. For the metrics,
    see `jaxddpg.training.evaluation.evaluate`."""
    return evaluate(
        jax.random.fold_in(streams(key).evaluation, clock.epoch),
        parts.environment,
        partial(parts.agent.act, agent),
        partial(parts.agent.value, agent),
        parts.agent.gamma,
        parts.evaluation.num_episodes,
    )


def shard_key(parts: Parts, key: Key) -> Key:
    """This shard's key, with the shard index folded in; unchanged if the member is not sharded."""
    return jax.random.fold_in(key, jax.lax.axis_index(sharding.AXIS)) if parts.sharded else key


def _unrounded(x: jax.Array) -> jax.Array:
    """The identity. XLA multiplies in bfloat16 on a TPU, and would move this conversion of a batch that is only
    multiplied before the gather, where it converts the whole replay. A barrier on the bits prevents that."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), x.dtype)


def _nearest_divisor(number: int, wanted: float) -> int:
    """The divisor of `number` closest to `wanted` in log space."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return min([*small, *(number // d for d in small)], key=lambda d: abs(math.log(d / wanted)))
