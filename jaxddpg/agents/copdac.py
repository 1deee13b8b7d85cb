"""Compatible off-policy deterministic actor-critic (COPDAC): Silver et al. 2014, section 4.3.

With phi(s, a) = J(s) (a - mu(s)), J(s) the gradient of the policy [parameters, A], the compatible critic is

    Q(s, a) = phi(s, a)^T w + V(s),    and so    Q(s, mu(s)) = V(s)    and    dQ/da = J(s)^T w.

J is never formed. Linearising the policy over a batch gives its two products: J^T w, a tangent of the actions, and J x,
the cotangent of actions summed over rows. Here the policy inside the critic is frozen by construction: a critic that
moved with it would have Q(s, mu(s)) = V(s) whatever the policy, and no gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode
from jax.scipy.sparse.linalg import cg

from jaxddpg import equations, features, settings
from jaxddpg.networks import OnFeatures
from jaxddpg.types import Agent, Clock, Environment, Features, Key, Metrics, Params, Scalar, Transition


class COPDACState(PyTreeNode):
    """The weights, named as in the paper."""

    theta: Params
    """of the policy"""
    w: Params
    """of the compatible advantage, like theta"""
    v: Params
    """of the state value"""
    u: Params
    """the second weights of gradient Q-learning, like theta; zero where it is not used"""


def copdac(environment: Environment, config: settings.COPDAC = settings.COPDAC()) -> Agent:
    """The agent for an environment's sizes and ranges; `config` holds numbers, traced or not, and shapes.

    `config.critic`: "q" is COPDAC-Q (equations 19 to 22), "gq" is COPDAC-GQ (23 to 27). "regression" fits w and v to
    each batch by least squares, as in the paper's continuous bandit. `config.gradient`: "vanilla" steps along J J^T w,
    "natural" along w. Steps are means over the batch.

    Raises:
        ValueError: the environment says no range for an observation, and neither does `config.features`.
    """
    encoding = make_features(environment, config.features)
    policy = OnFeatures(encoding, config.actor.hidden_sizes, environment.action_size)
    baseline = OnFeatures(encoding, config.baseline.hidden_sizes, 1)
    bound = optax.clip_by_global_norm(config.max_grad_norm)

    def mu(theta: Params, observation: jax.Array) -> jax.Array:
        output: Any = policy.apply(theta, observation)
        return jnp.tanh(output) if config.actor.squash == "tanh" else output

    def state_value(v: Params, observation: jax.Array) -> jax.Array:
        output: Any = baseline.apply(v, observation)
        return jnp.squeeze(output, axis=-1)

    def init(key: Key) -> COPDACState:
        policy_key, baseline_key = jax.random.split(key)
        observation = jnp.zeros((1, environment.observation_size))
        theta = policy.init(policy_key, observation)
        zeros = jax.tree.map(jnp.zeros_like, theta)
        # Copies: a donated state may not hold one buffer twice.
        return COPDACState(theta, zeros, baseline.init(baseline_key, observation), jax.tree.map(jnp.copy, zeros))

    def act(state: COPDACState, observation: jax.Array) -> jax.Array:
        return mu(state.theta, observation)

    def value(state: COPDACState, observation: jax.Array) -> jax.Array:
        return state_value(state.v, observation) / config.reward_scale

    def update(key: Key, clock: Clock, state: COPDACState, batch: Transition) -> tuple[COPDACState, Metrics]:
        del key, clock  # the update draws nothing, and its rates are constant
        # The linear maps of a batch: `along(w)` is J^T w, a row each; `back(x)` is the mean of J x over the rows.
        action, along, back = linearized(lambda theta: mu(theta, batch.observation), state.theta)
        values, value_along, value_back = linearized(lambda v: state_value(v, batch.observation), state.v)
        next_values, _, next_back = linearized(lambda v: state_value(v, batch.next_observation), state.v)
        offset = batch.action - action
        q = equations.compatible_value(offset, along(state.w), values)
        target = equations.td_target(config.reward_scale * batch.reward, batch.discount, next_values)
        error = target - q

        w, v, u = state.w, state.v, state.u
        if config.critic == "regression":
            # The change of w and v that explains the errors best, in offsets of size one so that both count alike.
            size = jnp.maximum(jnp.sqrt(jnp.mean(offset**2)), jnp.finfo(offset.dtype).tiny)
            unit = offset / size

            def normal(change: tuple[Params, Params]) -> tuple[Params, Params]:
                fit = equations.compatible_value(unit, along(change[0]), value_along(change[1]))
                return back(fit[:, None] * unit), value_back(fit)

            change, _ = cg(normal, (back(error[:, None] * unit), value_back(error)), tol=1e-6)
            w, v = ascend(w, 1 / size, change[0]), ascend(v, 1.0, change[1])
        else:
            v_step = value_back(error)
            if config.critic == "gq":
                projection = equations.compatible_value(offset, along(u), jnp.zeros_like(error))  # phi(s, a)^T u
                # Of the two corrections that of w vanishes, as phi(s', mu(s')) does.
                v_step = jax.tree.map(jnp.subtract, v_step, next_back(batch.discount * projection))
                u = ascend(u, config.correction_learning_rate, back((error - projection)[:, None] * offset))
            w = ascend(w, config.critic_learning_rate, back(error[:, None] * offset))
            v = ascend(v, config.baseline_learning_rate, v_step)

        # Equations 19 to 27 step all weights at once; a critic fitted anew is there to be used.
        guide = w if config.critic == "regression" else state.w
        theta_step = guide if config.gradient == "natural" else back(along(guide))
        theta = ascend(state.theta, config.actor_learning_rate, theta_step)
        metrics = {
            "critic_loss": jnp.mean(error**2),
            "actor_loss": equations.actor_loss(values),
            "q_mean": jnp.mean(q) / config.reward_scale,
        }
        return COPDACState(theta, w, v, u), metrics

    def ascend(weights: Params, rate: Scalar, step: Params) -> Params:
        bounded, _ = bound.update(step, bound.init(step))
        return jax.tree.map(lambda weight, s: weight + rate * s, weights, bounded)

    return Agent(init, act, value, update, config.gamma, config.batch_size)


def linearized(
    function: Callable[[Params], jax.Array], params: Params
) -> tuple[jax.Array, Callable[[Params], jax.Array], Callable[[jax.Array], Params]]:
    """The rows [B, ...] of a function of parameters, how they move along a change of them, and the mean change of the
    parameters along given rows."""
    rows, along = jax.linearize(function, params)
    transposed = jax.linear_transpose(along, params)
    return rows, along, lambda cotangent: transposed(cotangent / len(cotangent))[0]


def make_features(environment: Environment, section: settings.Features) -> Features:
    """The encoding that a section describes, on its ranges or else the environment's.

    Raises:
        ValueError: there is no range, or not one for each observation.
    """
    size = environment.observation_size
    stated = section.low or section.high
    low, high = (section.low, section.high) if stated else (environment.observation_low, environment.observation_high)
    if stated and len(section.low) != size:
        raise ValueError(
            f"agent.features.low and high have {len(section.low)} numbers, but there are {size} observations"
        )
    low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), (size,)) for bound in (low, high))
    # Environments without bounds often state the largest float instead of infinity.
    if not isinstance(high, jax.core.Tracer) and not bool(jnp.all((jnp.abs(low) < 1e30) & (jnp.abs(high) < 1e30))):
        raise ValueError(
            f"the environment's observations have no range, low {low} and high {high}, to which features could be "
            "scaled; state agent.features.low and agent.features.high, one number per observation"
        )
    match section:
        case settings.Tiles():
            return features.tiles(low, high, section.num_tilings, section.num_tiles)
        case settings.Fourier():
            return features.fourier(low, high, section.order)
        case settings.Radial():
            return features.radial(low, high, section.num_centers, section.width)
        case settings.Polynomial():
            return features.polynomial(low, high, section.order)
    raise TypeError(f"{type(section).__name__} is no encoding")
