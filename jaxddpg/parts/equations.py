"""The equations of deterministic policy gradients, one function each.

Silver et al. 2014, "Deterministic policy gradient algorithms" (ICML); Lillicrap et al. 2015, "Continuous control with
deep reinforcement learning" (arXiv 1509.02971).
"""

import chex
import jax
import jax.numpy as jnp
import optax

from jaxddpg.types import Experience, Params, Scalar, Transition


def transition(rows: Experience, gamma: Scalar) -> Transition:
    """The transitions [B] of experience [B], with the discount gamma * (1 - terminated): a time limit does not cut the
    bootstrap."""
    discount = gamma * (1.0 - rows.terminated)
    return Transition(rows.observation, rows.action, rows.reward, rows.next_observation, discount)


def td_target(reward: jax.Array, discount: jax.Array, next_q: jax.Array) -> jax.Array:
    """y = r + discount * Q'(s', mu'(s')), all [B]. Lillicrap 2015, algorithm 1."""
    chex.assert_equal_shape([reward, discount, next_q])
    return jax.lax.stop_gradient(reward + discount * next_q)


def critic_loss(q: jax.Array, target: jax.Array) -> jax.Array:
    """L = mean (y - Q(s, a))^2 over a batch [B]. Lillicrap 2015, equation 4."""
    chex.assert_equal_shape([q, target])
    chex.assert_rank(q, 1)
    return jnp.mean(jnp.square(target - q))


def actor_loss(q: jax.Array) -> jax.Array:
    """-mean Q(s, mu(s)) over a batch [B]; the negative of its gradient is Lillicrap 2015, equation 6.

    The chain rule dQ/da * dmu/dtheta is left to automatic differentiation: differentiate with respect to the actor's
    parameters only.
    """
    chex.assert_rank(q, 1)
    return -jnp.mean(q)


def compatible_advantage(offset: jax.Array, slope: jax.Array) -> jax.Array:
    """Q(s, a) - V(s) = (a - mu(s))^T J(s)^T w [B]; Silver 2014, section 4.3. It vanishes at the policy's own action.

    Args:
        offset: a - mu(s) [B, A].
        slope: J(s)^T w [B, A], the gradient of Q with respect to the action, the same for every action.
    """
    chex.assert_equal_shape([offset, slope])
    chex.assert_rank(offset, 2)
    return jnp.sum(offset * slope, axis=-1)


def soft_update(target: Params, online: Params, tau: Scalar) -> Params:
    """theta' <- (1 - tau) theta' + tau theta, leaf by leaf. Lillicrap 2015, algorithm 1."""
    return optax.incremental_update(online, target, tau)
