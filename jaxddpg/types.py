"""Data types and function records.

Data are `PyTreeNode`s of arrays: they pass through `jit` and `vmap` and can be checkpointed. Behavior is a `NamedTuple`
of pure functions that close over their hyperparameters; it is never returned from `jit` and never part of a state.

Functions take key, clock, state and data, in that order, and return state and output. Keys are typed and consumed: no
caller uses a key again.

Shapes in docstrings: B transitions of a batch, N parallel environments, E evaluation episodes, O observation size,
A action size, M members of a population; [] is a scalar. Actions are in [-1, 1]^A everywhere but inside the adapter of
an environment.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode, field

Key = jax.Array
Params = Any
State = Any
Scalar = float | jax.Array
Metrics = dict[str, jax.Array]


def seed_key(seed: int | jax.Array | np.ndarray) -> Key:
    """The PRNG key of a seed, always threefry2x32 regardless of JAX's default."""
    return jax.random.key(seed, impl="threefry2x32")


class Clock(PyTreeNode):
    """The training clock, shared by all members of a population and never batched.

    Every member's replay is written at the same position, so that the write of all members is one slice; with a
    position for each it would be a scatter over the whole buffer.
    """

    epoch: jax.Array | np.uint32
    """uint32: the number of the epoch, 0 during the warm-up."""
    step: jax.Array | np.uint32
    """uint32: vector steps since the start of the run, warm-up included."""
    num_envs: int = field(pytree_node=False)
    """Environments of one member."""
    num_shards: int = field(pytree_node=False, default=1)
    """Shards of one member."""

    @property
    def rows_per_step(self) -> int:
        """Rows that one vector step adds to the replay of one shard: one for each of its environments."""
        return self.num_envs // self.num_shards

    def after(self, steps: jax.Array | int) -> "Clock":
        """The clock `steps` vector steps later."""
        return self.replace(step=self.step + steps)

    def sequence(self, num: int, stride: int = 1) -> "Clock":
        """The clocks [num] that start at this one, `stride` vector steps apart, to be scanned over."""
        return jax.vmap(self.after)(jnp.arange(num, dtype=jnp.uint32) * stride)

    def anneal(self, initial: Scalar, final: Scalar, decay_steps: Scalar) -> jax.Array:
        """Linear schedule from `initial` to `final` over `decay_steps` env steps of the member; constant if
        `decay_steps` is inf."""
        env_steps = jnp.asarray(self.step, float) * self.num_envs
        return initial + (final - initial) * jnp.minimum(env_steps / decay_steps, 1.0)


class TimeStep(PyTreeNode):
    """The result of one step of an environment."""

    observation: jax.Array
    """[O] next observation to act on; at the end of an episode, the first of the next one."""
    final_observation: jax.Array
    """[O] true successor observation, for learning."""
    reward: jax.Array
    """[]"""
    terminated: jax.Array
    """[] bool: the episode ended in a terminal state."""
    truncated: jax.Array
    """[] bool: the episode was cut by a time limit."""


class Experience(PyTreeNode):
    """One row of the replay, before any discount is applied."""

    observation: jax.Array
    """[O]"""
    action: jax.Array
    """[A] executed action, after adding noise and clipping."""
    reward: jax.Array
    """[]"""
    next_observation: jax.Array
    """[O]"""
    ending: jax.Array
    """[] uint8: 0 where the episode continued, 1 where it was truncated, 2 where it terminated."""

    @classmethod
    def zeros(cls, environment: "Environment") -> "Experience":
        """A row of zeros, with the sizes of an environment."""
        observation, action = jnp.zeros(environment.observation_size), jnp.zeros(environment.action_size)
        return cls(observation, action, jnp.zeros(()), observation, jnp.zeros((), jnp.uint8))

    @classmethod
    def from_time_step(cls, observation: jax.Array, action: jax.Array, time_step: "TimeStep") -> "Experience":
        """What an action led to, of one environment or, with a leading axis, of several."""
        ending = jnp.where(time_step.terminated, 2, time_step.truncated).astype(jnp.uint8)
        return cls(observation, action, time_step.reward, time_step.final_observation, ending)

    @property
    def terminated(self) -> jax.Array:
        """[] bool"""
        return self.ending == 2

    @property
    def last(self) -> jax.Array:
        """[] bool: whether the episode ended with this step, by termination or truncation."""
        return self.ending > 0


class Transition(PyTreeNode):
    """One transition (s, a, r, s') with the discount of the next value."""

    observation: jax.Array
    """[O]"""
    action: jax.Array
    """[A]"""
    reward: jax.Array
    """[]"""
    next_observation: jax.Array
    """[O]"""
    discount: jax.Array
    """[]: gamma * (1 - terminated), since a time limit does not cut the bootstrap."""


class Environment(NamedTuple):
    """A single auto-resetting environment; the trainer vmaps it."""

    reset: Callable[[Key], tuple[State, jax.Array]]
    """`reset(key) -> state, observation [O]`"""
    step: Callable[[Key, State, jax.Array], tuple[State, TimeStep]]
    """`step(key, state, action [A]) -> state, TimeStep`; where the episode ended, the state is the first of the next
    episode."""
    observation_size: int
    """O"""
    action_size: int
    """A"""
    episode_length: int
    """The steps after which an episode is truncated, at the latest."""
    action_low: Any = -1.0
    """[A] or scalar: lower end of the action range, in environment units."""
    action_high: Any = 1.0
    """[A] or scalar: the meaning of action 1 in the environment's own units."""
    observation_low: Any = -jnp.inf
    """[O] or scalar: lower bound used to scale features for linear agents; -inf if unbounded."""
    observation_high: Any = jnp.inf
    """[O] or scalar: its upper end."""
    render: Callable[[State], np.ndarray] | None = None
    """`render(states [F, ...]) -> images [F, H, W, 3]` uint8, of NumPy arrays, not traced. If None, `jaxddpg render`
    plots observations."""


def rescale(action: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Clips an action to [-1, 1]^A and scales it to the Box [low, high], whose ends -1 and 1 map to exactly."""
    action = jnp.clip(action, -1.0, 1.0)
    # The outer clip removes the rounding error of the products.
    return jnp.clip((1 - action) / 2 * low + (1 + action) / 2 * high, low, high)


class Noise(NamedTuple):
    """Exploration noise, which is added to the policy's action."""

    init: Callable[[Key, tuple[int, ...]], State]
    """`init(key, shape) -> state`"""
    sample: Callable[[Key, Clock, State], tuple[State, jax.Array]]
    """`sample(key, clock, state) -> state, noise` of the shape that `init` was given."""
    reset: Callable[[Key, State, jax.Array], State]
    """`reset(key, state, mask [N]) -> state`, initial for the environments where the mask is true."""


class Replay(NamedTuple):
    """A replay buffer."""

    init: Callable[[Experience], State]
    """`init(example) -> state`, from one row."""
    add: Callable[[Clock, State, Experience], State]
    """`add(clock, state, rows) -> state`, with the rows of vector step `clock.step`, one for each environment."""
    sample: Callable[[Key, Clock, State, int], Experience]
    """`sample(key, clock, state, n) -> rows [n, steps]`, n windows of successive rows of one environment, of the rows
    that were added before step `clock.step`."""
    steps: int = 1
    """The vector steps of a window, so many of which must be added before the first sample."""


class Features(NamedTuple):
    """A fixed feature map phi for linear function approximation."""

    size: int
    """The number of features."""
    dot: Callable[[jax.Array, jax.Array], jax.Array]
    """`dot(weights [size, K], observation [..., O]) -> weights^T phi(s) [..., K]`"""


def _unchanged(clock: Clock, state: State, observation: jax.Array) -> State:
    return state


class Agent(NamedTuple):
    """A learner: its policy, its critic and its update."""

    init: Callable[[Key], State]
    """`init(key) -> state`"""
    act: Callable[[State, jax.Array], jax.Array]
    """`act(state, observation [..., O]) -> action [..., A]`, of the deterministic policy."""
    value: Callable[[State, jax.Array], jax.Array]
    """`value(state, observation [..., O]) -> [...]`, the predicted discounted return of `act`, in units of the
    reward."""
    update: Callable[[Key, Clock, State, Transition], tuple[State, Metrics]]
    """`update(key, clock, state, batch [B]) -> state, metrics []`"""
    diagnostics: Callable[[State, Transition], Metrics]
    """`diagnostics(state, batch [B]) -> metrics []`, which are computed once per epoch."""
    gamma: Scalar
    """The discount factor."""
    batch_size: int
    """B, the rows that one update learns from, of all shards of a member together."""
    critic_steps: int = 1
    """The gradient steps of the critic in one update. It counts as that many of `training.updates_per_step`."""
    observe: Callable[[Clock, State, jax.Array], State] = _unchanged
    """`observe(clock, state, observation [N, O]) -> state`, called once with the observations that are acted on in
    vector step `clock.step`, those of the warm-up too."""


class Trainer(NamedTuple):
    """The training functions of one member, or of one of its shards; not jitted."""

    init: Callable[[Key], State]
    """`init(key) -> state`, after the warm-up."""
    epoch: Callable[[Key, Clock, State], tuple[State, Metrics]]
    """`epoch(key, clock, state) -> state, metrics []`; the clock is that of the epoch's first vector step. The metrics
    are the agent's, averaged over the updates, its diagnostics at the end, and `return_sum` and `episodes_ended` of the
    training episodes that ended."""
    evaluate: Callable[[Key, Clock, State], Metrics]
    """`evaluate(key, clock, agent_state) -> metrics []` of the deterministic policy."""
    sharded_axes: State
    """A prefix of the state, of bools: whether the first axis of the leaves is split into shards."""
