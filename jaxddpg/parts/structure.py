"""Sentences about the structure of what the user's functions return."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxddpg.types import State


def kind(leaf: Any) -> str:
    """The type and shape of an array or a number, or what stands in the place of one."""
    is_numeric = hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float)
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" if is_numeric else f"a {type(leaf).__name__}"


def mismatch(first: str, before: State, then: str, after: State) -> str:
    """How the state that the function `then` returned differs from that of the function `first` in structure, shapes
    or types, as a sentence; empty if it does not."""
    structures: list[Any] = [jax.tree.structure(state) for state in (before, after)]
    was, now = (
        {jax.tree_util.keystr(path): kind(leaf) for path, leaf in jax.tree.leaves_with_path(state)}
        for state in (before, after)
    )
    if structures[0] == structures[1] and was == now:
        return ""

    def listed(own: dict[str, str], other: dict[str, str], structure: Any) -> str:
        if was == now:
            return str(structure)
        found = [f"{path} {leaf}".strip() for path, leaf in own.items() if other.get(path) != leaf]
        return ", ".join([*found[:3], *["..."] * (len(found) > 3)]) or "nothing"

    return (
        f"{then} returns a state with {listed(now, was, structures[1])}, where that of {first} has "
        f"{listed(was, now, structures[0])}; return the same structure, shapes and dtypes from both"
    )


def has_key(state: State) -> bool:
    """Whether a state, or its shapes and types, has a PRNG key."""
    return any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state))
