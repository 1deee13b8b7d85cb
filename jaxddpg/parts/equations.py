"""The equations of deterministic policy gradients, one function each.

Silver et al. 2014, "Deterministic policy gradient algorithms" (ICML); Lillicrap et al. 2015, "Continuous control with
deep reinforcement learning" (arXiv 1509.02971); Fujimoto et al. 2018, "Addressing function approximation error in
actor-critic methods" (arXiv 1802.09477).
"""

import chex
import jax
import jax.numpy as jnp
import optax

from jaxddpg.types import Experience, Key, Params, Scalar, Transition


def transition(rows: Experience, gamma: Scalar) -> Transition:
    """The n-step transitions [B] of windows [B, n], each n successive rows of one environment.

    A window counts up to and including the first row that ends an episode, its m-th of at most n:
    R = sum_{k<m} gamma^k r_k, the successor is that of row m, and the discount is gamma^m (1 - terminated), so that
    agents bootstrap through time limits. Watkins 1989; with n = 1 the transition of Lillicrap 2015, algorithm 1.
    """
    first = jax.tree.map(lambda x: x[:, 0], rows)
    if rows.reward.shape[1] == 1:  # the sums below would be rounded differently when they are compiled
        discount = gamma * (1.0 - first.terminated)
        return Transition(first.observation, first.action, first.reward, first.next_observation, discount)
    before = jnp.concatenate([jnp.zeros_like(rows.last[:, :1]), rows.last[:, :-1]], axis=1)
    counted = jnp.cumsum(before, axis=1) == 0
    steps = jnp.sum(counted, axis=1)  # m
    end = jax.tree.map(lambda x: x[jnp.arange(len(steps)), steps - 1], rows)
    # Chosen and not multiplied by 0: what follows belongs to another episode and may be inf.
    reward = jnp.sum(jnp.where(counted, gamma ** jnp.arange(rows.reward.shape[1]) * rows.reward, 0.0), axis=1)
    discount = gamma**steps * (1.0 - end.terminated)
    return Transition(first.observation, first.action, reward, end.next_observation, discount)


def td_target(reward: jax.Array, discount: jax.Array, next_q: jax.Array) -> jax.Array:
    """y = r + discount * Q'(s', mu'(s')), all [B]. Lillicrap 2015, algorithm 1."""
    chex.assert_equal_shape([reward, discount, next_q])
    return jax.lax.stop_gradient(reward + discount * next_q)


def critic_loss(q: jax.Array, target: jax.Array) -> jax.Array:
    """L = mean (y - Q(s, a))^2 over a batch [B]. Lillicrap 2015, equation 4."""
    chex.assert_equal_shape([q, target])
    chex.assert_rank(q, 1)
    return jnp.mean(jnp.square(target - q))


def smoothing_noise(key: Key, shape: tuple[int, ...], scale: Scalar, bound: Scalar) -> jax.Array:
    """clip(N(0, scale^2), -bound, bound), independent for each row and dimension. Fujimoto 2018, equation 14."""
    return jnp.clip(scale * jax.random.normal(key, shape), -bound, bound)


def expected_value(probabilities: jax.Array, v_min: Scalar, v_max: Scalar) -> jax.Array:
    """The means [...] of distributions [..., K] on K atoms from v_min to v_max."""
    number = jnp.arange(probabilities.shape[-1], dtype=probabilities.dtype)
    # In units of atoms and not as a matrix product, whose inputs accelerators round: far from zero all atoms are alike.
    return v_min + (v_max - v_min) / (len(number) - 1) * jnp.sum(probabilities * number, axis=-1)


def categorical_target(
    probabilities: jax.Array, reward: jax.Array, discount: jax.Array, v_min: Scalar, v_max: Scalar
) -> jax.Array:
    """The distribution [B, K] of reward + discount * Z, where Z has these probabilities [B, K] on K atoms from v_min to
    v_max. The mass of each atom is clipped to that range and split between the two nearest atoms. Bellemare et al.
    2017, "A distributional perspective on reinforcement learning" (arXiv 1707.06887), equation 7."""
    num_atoms = probabilities.shape[-1]
    spacing = (v_max - v_min) / (num_atoms - 1)
    # In units of atoms, so that rounding does not grow with the values.
    shifted = (reward + (discount - 1.0) * v_min)[:, None] / spacing + discount[:, None] * jnp.arange(num_atoms)
    position = jnp.clip(shifted, 0.0, num_atoms - 1.0)
    lower = jnp.minimum(jnp.floor(position), num_atoms - 2.0)
    upper_mass = probabilities * (position - lower)
    row, lower = jnp.arange(len(reward))[:, None], lower.astype(jnp.int32)
    target = jnp.zeros_like(probabilities).at[row, lower].add(probabilities - upper_mass)
    return jax.lax.stop_gradient(target.at[row, lower + 1].add(upper_mass))


def categorical_loss(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The mean cross-entropy over a batch of distributions [B, K]. Bellemare et al. 2017, algorithm 1."""
    chex.assert_equal_shape([logits, target])
    return jnp.mean(optax.softmax_cross_entropy(logits, target))


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
