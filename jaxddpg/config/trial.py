"""A smoke test of custom environments: whether a few short episodes end as the contract requires."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.types import Environment, Key, State

Flags = tuple[jax.Array, ...]
"""Of each step and player [T, P]: whether an episode ended, and the flags of `Ends`."""
_PLAYERS, _MOST_STEPS = 4, 1_000


class Ends(NamedTuple):
    """How the first episode of each of P players ended, arrays [P]."""

    steps: np.ndarray
    """After how many; 0 where it has not ended as far as it was played."""
    terminated: np.ndarray
    truncated: np.ndarray
    moved: np.ndarray
    """Whether what is observed next is not where the episode ended."""
    stale: np.ndarray
    """Whether it equals final_observation and is not one of the observed initial observations."""
    played: int
    """Steps"""


def play(environment: Environment, key: Key) -> Flags:
    """Plays as many steps as an episode may have, at most 1000: the first player with an action of 0, the others with
    random ones."""
    length = min(environment.episode_length, _MOST_STEPS)
    reset_key, step_key, action_key = jax.random.split(key, 3)
    state, starts = jax.vmap(environment.reset)(jax.random.split(reset_key, _PLAYERS))
    actions = jax.random.uniform(action_key, (length, _PLAYERS, environment.action_size), minval=-1.0)
    keys = jax.random.split(step_key, (length, _PLAYERS))

    def step(state: State, inputs: tuple[Key, jax.Array]) -> tuple[State, tuple[jax.Array, ...]]:
        state, seen = jax.vmap(environment.step)(inputs[0], state, inputs[1])
        moved = jnp.any(seen.observation != seen.final_observation, axis=1)
        begun = jnp.any(jnp.all(seen.observation[:, None] == starts, axis=-1), axis=1)
        begun |= ~jnp.all(jnp.isfinite(starts))  # which cannot be compared, and is another error
        return state, (seen.terminated | seen.truncated, seen.terminated, seen.truncated, moved, ~moved & ~begun)

    return jax.lax.scan(step, state, (keys, actions.at[:, 0].set(0.0)))[1]


def ended(flags: Flags) -> Ends:
    """How the first episode of each player ended."""
    over, *others = map(np.asarray, flags)
    first, players = over.argmax(0), np.arange(_PLAYERS)
    terminated, truncated, moved, stale = (over.any(0) & flag[first, players] for flag in others)
    return Ends(np.where(over.any(0), first + 1, 0), terminated, truncated, moved, stale, len(over))


def errors(ends: Ends, episode_length: int) -> list[str]:
    """What is wrong for certain, each as the rest of a sentence about the environment."""
    ended = ends.steps > 0
    if ends.played == episode_length and not ended.all():
        return [
            f"does not end its episodes after episode_length = {episode_length:,} steps; count the steps and return "
            "truncated=True at the limit"
        ]
    return [_STALE] if ended.all() and _stale(ends) and ends.truncated.any() else []


def doubts(ends: Ends, episode_length: int) -> list[str]:
    """What is probably wrong, each as the rest of a sentence about the environment."""
    # Where all episodes terminate, an observation of the next one as the final one does no harm.
    found = [_STALE] if _stale(ends) and not ends.truncated.any() else []
    limited = (ends.steps == episode_length) | ((ends.steps > 0) & ends.truncated)
    if episode_length > 1 and limited.any() and ends.terminated[limited].all():
        found += [
            f"returns terminated at its time limit of {episode_length:,} steps; return truncated at the limit and "
            "terminated only for true terminal states (in gymnax >= 1.0, step_env leaves the limit to is_truncated)"
        ]
    return found


_STALE = (
    "returns the same observation and final_observation when an episode ends; step must return the reset state and its "
    "observation, and the true successor as final_observation"
)


def _stale(ends: Ends) -> bool:
    """Whether what is observed after an end is where the episode ended, and no beginning."""
    return bool(ends.stale.any() and not ends.moved.any())
