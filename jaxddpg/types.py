"""The vocabulary: the data that flows through the house and the records of functions that move it.

Data are `PyTreeNode`s of arrays: they cross `jit`, `vmap` and the disk. Behaviour is a `NamedTuple` of pure
functions made from numbers and closed over: it is never returned from `jit` and never part of a state.

Order everywhere: key, clock, state, data in; state, output out. Keys are typed, come first and are consumed.

Shapes in docstrings: B rows of a batch, N parallel environments, E evaluation episodes, O observation size,
A action size, M members of a population. Executed actions are in [-1, 1]^A everywhere but behind an environment's door.
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
    """The key of a seed; its generator is the same whatever JAX's default is."""
    return jax.random.key(seed, impl="threefry2x32")


class Clock(PyTreeNode):
    """The time that all members of a population share; never batched.

    Because every member's replay is written at the same position, a clock that stays outside the members' state
    keeps that write a slice, where a batched position would make it a scatter over the whole buffer.
    """

    epoch: jax.Array | np.uint32
    """uint32: 0 during the warm-up, then the number of the running epoch."""
    step: jax.Array | np.uint32
    """uint32: vector steps since the start of the run, warm-up included."""
    num_envs: int = field(pytree_node=False)
    """of a member"""
    num_shards: int = field(pytree_node=False, default=1)
    """that a member falls into"""

    @property
    def rows_per_step(self) -> int:
        """that one replay is given: one for each environment of its shard"""
        return self.num_envs // self.num_shards

    def after(self, steps: jax.Array | int) -> "Clock":
        """The clock `steps` vector steps later."""
        return self.replace(step=self.step + steps)

    def anneal(self, initial: Scalar, final: Scalar, decay_steps: Scalar) -> jax.Array:
        """The value on the line from `initial` to `final`, reached after `decay_steps` env steps; inf: `initial`."""
        env_steps = self.step.astype(jnp.float32) * self.num_envs
        return initial + (final - initial) * jnp.minimum(env_steps / decay_steps, 1.0)


class TimeStep(PyTreeNode):
    """What an environment answers to an action."""

    observation: jax.Array
    """[O] to act on next: the first of a new episode where one has just ended."""
    final_observation: jax.Array
    """[O] where the action truly led: the one to learn from."""
    reward: jax.Array
    """[]"""
    terminated: jax.Array
    """[] bool: the task ended, nothing follows."""
    truncated: jax.Array
    """[] bool: a time limit was reached, the task would have gone on."""


class Experience(PyTreeNode):
    """One row of the replay: what happened, before any discount is applied."""

    observation: jax.Array
    action: jax.Array
    """[A] the executed action, noise and clipping included."""
    reward: jax.Array
    next_observation: jax.Array
    ending: jax.Array
    """uint8: 0 the episode went on, 1 it was truncated, 2 it terminated."""

    @property
    def terminated(self) -> jax.Array:
        """bool"""
        return self.ending == 2

    @property
    def last(self) -> jax.Array:
        """bool: the episode ended here, in one way or the other."""
        return self.ending > 0


class Transition(PyTreeNode):
    """One row to learn from: s, a, r, s' and the discount of what follows."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    discount: jax.Array
    """gamma * (1 - terminated): a time limit does not cut the bootstrap."""


class Environment(NamedTuple):
    """One environment that resets itself. The trainer vmaps it; actions are in [-1, 1]^A."""

    reset: Callable[[Key], tuple[State, jax.Array]]
    """`reset(key) -> state, observation [O]`"""
    step: Callable[[Key, State, jax.Array], tuple[State, TimeStep]]
    """`step(key, state, action [A]) -> state, TimeStep`; the state returned is already that of the next episode
    where this one ended."""
    observation_size: int
    action_size: int
    episode_length: int
    """Steps after which an episode is truncated, at the latest."""
    action_low: Any = -1.0
    """[A] or scalar: what action -1 means in the environment's own units."""
    action_high: Any = 1.0
    """[A] or scalar: what action +1 means in the environment's own units."""
    observation_low: Any = -jnp.inf
    """[O] or scalar: the range to which features of linear learners scale; infinite where there is none."""
    observation_high: Any = jnp.inf
    """[O] or scalar."""


def rescale(action: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """An action in [-1, 1]^A, clipped to it, in the units of the Box [low, high]; -1 and 1 are its ends exactly."""
    action = jnp.clip(action, -1.0, 1.0)
    # The outer clip takes back the rounding in between.
    return jnp.clip((1 - action) / 2 * low + (1 + action) / 2 * high, low, high)


class Noise(NamedTuple):
    """Exploration noise, added to the policy's action."""

    init: Callable[[Key, tuple[int, ...]], State]
    """`init(key, shape) -> state`"""
    sample: Callable[[Key, Clock, State], tuple[State, jax.Array]]
    """`sample(key, clock, state) -> state, noise` of the shape given to `init`"""
    reset: Callable[[Key, State, jax.Array], State]
    """`reset(key, state, mask) -> state`, fresh in the rows where mask is true"""


class Replay(NamedTuple):
    """A memory of experience."""

    init: Callable[[Experience], State]
    """`init(example) -> state`, the example being one row"""
    add: Callable[[Clock, State, Experience], State]
    """`add(clock, state, rows) -> state`, the rows of vector step `clock.step`, one per environment"""
    sample: Callable[[Key, Clock, State, int], Experience]
    """`sample(key, clock, state, n) -> n rows`, of those written before step `clock.step`"""


class Features(NamedTuple):
    """A fixed encoding phi of observations for linear functions of them."""

    size: int
    dot: Callable[[jax.Array, jax.Array], jax.Array]
    """`dot(weights [size, K], observation [..., O]) -> weights^T phi(s) [..., K]`"""


class Agent(NamedTuple):
    """A learner: how it acts, what it believes and how it improves."""

    init: Callable[[Key], State]
    act: Callable[[State, jax.Array], jax.Array]
    """`act(state, observation [..., O]) -> action [..., A]`, without noise"""
    value: Callable[[State, jax.Array], jax.Array]
    """`value(state, observation [..., O]) -> [...]`, the predicted discounted return of `act`, in units of reward"""
    update: Callable[[Key, Clock, State, Transition], tuple[State, Metrics]]
    """`update(key, clock, state, batch) -> state, metrics`"""
    diagnostics: Callable[[State, Transition], Metrics]
    """`diagnostics(state, batch) -> metrics`, which are computed once per epoch."""
    gamma: Scalar
    batch_size: int


class Trainer(NamedTuple):
    """The whole learning of one member, or of one of its shards, from its key to its policy. Nothing here is jitted."""

    init: Callable[[Key], State]
    """`init(key) -> state`, warm-up done"""
    epoch: Callable[[Key, Clock, State], tuple[State, Metrics]]
    """`epoch(key, clock, state) -> state, metrics`; the clock is that of the epoch's first vector step. The metrics are
    the agent's, averaged over the updates, its diagnostics at the end, and `return_sum` and `episodes_ended` of the
    training episodes that ended."""
    evaluate: Callable[[Key, Clock, State], Metrics]
    """`evaluate(key, clock, agent_state) -> metrics` of the noiseless policy"""
    sharded_axes: State
    """A prefix of the state, of bools: whether the first axis of the leaves is split into shards."""
