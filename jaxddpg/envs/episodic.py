"""Conversion of plain dynamics to an `Environment`, which truncates long episodes and resets itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.parts.structure import kind, mismatch
from jaxddpg.types import Environment, Key, Scalar, State, TimeStep


def episodic(
    reset: Callable[[Key], State],
    step: Callable[[Key, State, jax.Array], tuple[State, jax.Array, jax.Array]],
    observe: Callable[[State], jax.Array],
    *,
    observation_size: int,
    action_size: int,
    episode_length: int,
    timeout_reward: Scalar = 0.0,
    render: Callable[[State], np.ndarray] | None = None,
    **ranges: Any,
) -> Environment:
    """Adds a time limit and auto-reset to a task, making an `Environment`.

    Under `vmap`, `reset` is computed only for environments whose episode has just ended, not in every step: that of a
    physics engine costs as much as a step or more. Such a step has no reverse-mode derivative.

    Args:
        reset: key -> the first state of an episode.
        step: key, state, action [A] in [-1, 1] -> state, reward [], terminated [] bool.
        observe: state -> observation [O].
        observation_size: O.
        action_size: A.
        episode_length: steps after which an episode is truncated.
        timeout_reward: added to the reward of a step that is truncated.
        render: states [F, ...] of NumPy arrays -> images [F, H, W, 3] uint8; by default observations are plotted.
        ranges: of actions and observations, as fields of `Environment`.

    Raises:
        ValueError: while the environment is traced, where `step` does not return a state like that of `reset`, a reward
            and a bool, or `observe` no observation.
    """

    def observed(state: State) -> jax.Array:
        observation = observe(state)
        shape, is_array = (observation_size,), hasattr(observation, "dtype")
        if not is_array or observation.shape != shape or not jnp.issubdtype(observation.dtype, jnp.floating):
            raise ValueError(f"observe must return float32{list(shape)}, not {kind(observation)}")
        return observation

    def reset_episode(key: Key) -> tuple[State, jax.Array]:
        state = reset(key)
        return (state, jnp.zeros((), jnp.int32)), observed(state)

    def step_episode(key: Key, timed: State, action: jax.Array) -> tuple[State, TimeStep]:
        state, time = timed
        reset_key, step_key = jax.random.split(key)
        stepped = step(step_key, state, action)
        if not isinstance(stepped, tuple) or len(stepped) != 3:
            raise ValueError("step must return a state, a reward and whether the task terminated")
        state, reward, terminated = stepped
        terminated = jnp.asarray(terminated)  # ~ of a Python bool is a number
        if kind(terminated) != "bool[]":
            raise ValueError(f"step must return bool[] as terminated, not {kind(terminated)}")
        truncated = (time + 1 >= episode_length) & ~terminated
        last = terminated | truncated
        (first, _), _ = jax.eval_shape(reset_episode, reset_key)
        if wrong := mismatch("reset", first, "step", state):
            raise ValueError(wrong)
        final_observation = observed(state)
        timed, observation = _replace_where(last, reset_episode, reset_key, ((state, time + 1), final_observation))
        return timed, TimeStep(
            observation=observation,
            final_observation=final_observation,
            reward=reward + jnp.where(truncated, timeout_reward, 0.0),
            terminated=terminated,
            truncated=truncated,
        )

    images = render and (lambda timed: render(timed[0]))
    return Environment(
        reset_episode, step_episode, observation_size, action_size, episode_length, render=images, **ranges
    )


def _replace_where(mask: jax.Array, make: Callable[[Key], Any], key: Key, old: Any) -> Any:
    """`make(key)` where the mask [] is true, else `old`. Under `vmap` over N of them, `make` is computed in blocks of
    max(8, N / 16) until no mask is left, where a `cond` would compute all N."""
    # Arrays of an outer trace, such as swept parameters of the environment, have to be arguments of a custom rule.
    jaxpr, outputs = jax.make_jaxpr(make, return_shape=True)(key)

    def made(constants: list[Any], key: Key) -> Any:
        flat = jax.core.eval_jaxpr(jaxpr.jaxpr, constants, key)
        return jax.tree.unflatten(jax.tree.structure(outputs), flat)

    @jax.custom_batching.custom_vmap
    def replace(constants: list[Any], mask: jax.Array, key: Key, old: Any) -> Any:
        return jax.lax.cond(mask, lambda: made(constants, key), lambda: old)

    @replace.def_vmap
    def _(size: int, batched: Any, constants: list[Any], *rest: Any) -> tuple[Any, Any]:
        of_each, *rest_batched = batched
        mask, key, old = jax.tree.map(
            lambda split, x: x if split else jnp.broadcast_to(x, (size, *x.shape)), tuple(rest_batched), rest
        )
        axes, block = [0 if split else None for split in of_each], min(size, max(8, size // 16))

        def one_block(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            left, current = carry
            rows = jnp.nonzero(left, size=block, fill_value=size)[0]  # rows of `size` are dropped below
            own = [x[rows] if split else x for split, x in zip(of_each, constants, strict=True)]
            new = jax.vmap(made, in_axes=(axes, 0))(own, key[rows])
            put = lambda x, row: x.at[rows].set(row, mode="drop")  # noqa: E731
            return put(left, False), jax.tree.map(put, current, new)

        _, current = jax.lax.while_loop(lambda carry: jnp.any(carry[0]), one_block, (mask, old))
        return current, jax.tree.map(lambda _: True, old)

    return replace(jaxpr.consts, mask, key, old)
