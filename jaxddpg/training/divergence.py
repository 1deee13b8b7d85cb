"""Detection of non-finite values and of the step at which the first one appeared."""

from functools import reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxddpg.parts import sharding
from jaxddpg.types import Clock

_NEVER = 2**32 - 1


class Divergence(PyTreeNode):
    """The first value of a member that was not finite; once set, it never changes."""

    reason: jax.Array
    """uint8: the kind of that value, an index into `REASONS`; 0 while all values are finite."""
    step: jax.Array
    """uint32: the vector step at which it was seen; 0 while all values are finite."""

    REASONS: ClassVar = ("", "observation", "reward", "loss", "parameter", "start")
    """`start` is the first observation of an episode; `loss` covers all update metrics, such as mean Q and gradient
    norms."""
    FUNCTIONS: ClassVar = {"start": "reset", "observation": "step", "reward": "step"}
    """The function of the environment that returned the value, by reason."""

    @classmethod
    def none(cls) -> "Divergence":
        """The divergence of a member whose values have all been finite."""
        return cls(jnp.zeros((), jnp.uint8), jnp.zeros((), jnp.uint32))

    def update(self, clock: Clock, **values: Any) -> "Divergence":
        """Checks pytrees of arrays at the clock's step.

        Args:
            clock: the time that is recorded where a value is not finite.
            values: pytrees by reason (one of `REASONS`); if several are non-finite, the first counts.
        """
        reason = self.reason
        for name, tree in values.items():
            finite = reduce(
                jnp.logical_and, (jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)), jnp.bool_(True)
            )
            reason = jnp.where((reason > 0) | finite, reason, jnp.uint8(self.REASONS.index(name)))
        return Divergence(reason, jnp.where(self.diverged | (reason == 0), self.step, clock.step))

    def sync(self) -> "Divergence":
        """The earliest divergence over all shards of a member; must run under the axis `sharding.AXIS`."""
        first = jax.lax.pmin(jnp.where(self.diverged, self.step, jnp.uint32(_NEVER)), sharding.AXIS)
        reason = jnp.where(self.diverged & (self.step == first), self.reason, jnp.uint8(0))
        reason = jax.lax.pmax(reason, sharding.AXIS)
        return Divergence(reason, jnp.where(reason > 0, first, jnp.uint32(0)))

    @property
    def diverged(self) -> jax.Array:
        """bool: whether any value was not finite."""
        return self.reason > 0
