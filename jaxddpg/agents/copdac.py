"""Compatible off-policy deterministic actor-critic (COPDAC): Silver et al. 2014, section 4.3.

With phi(s, a) = J(s) (a - mu(s)), J(s) the gradient of the policy [parameters, A], the compatible critic is

    Q(s, a) = phi(s, a)^T w + V(s),    and so    Q(s, mu(s)) = V(s)    and    dQ/da = J(s)^T w.

J is never formed. The linearisation of the policy over a batch gives its two products: J^T w, a tangent of the actions,
and J x, a cotangent summed over the batch. The policy inside the critic is held fixed by construction: a critic that
changed with it would have Q(s, mu(s)) = V(s) for every policy, and no gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode
from jax.scipy.sparse.linalg import cg

from jaxddpg import settings
from jaxddpg.parts import equations, sharding
from jaxddpg.parts.networks import FeatureNetwork
from jaxddpg.types import Agent, Clock, Environment, Features, Key, Metrics, Params, Scalar, Transition


class COPDACState(PyTreeNode):
    """The weights, named as in the paper."""

    theta: Params
    """Of the policy."""
    w: Params
    """Of the compatible advantage, shaped as theta."""
    v: Params
    """Of the state value."""
    u: Params
    """The second weights of gradient Q-learning, shaped as theta; zero where it is not used."""


def copdac(
    environment: Environment,
    features: Features,
    config: settings.COPDAC = settings.COPDAC(),
    axis_name: str | None = None,
) -> Agent:
    """Makes the COPDAC agent for an environment on an encoding of its observations.

    Args:
        environment: only its sizes are read.
        features: the encoding, which `config.features` only describes.
        config: its numbers may be traced. `config.critic` is "q" for COPDAC-Q (equations 19 to 22), "gq" for COPDAC-GQ
            (23 to 27), or "regression", which fits w and v to each batch by least squares, as for the paper's
            continuous bandit. `config.gradient` is "vanilla" for steps along J J^T w, or "natural" for steps along w.
            Steps are means over the batch.
        axis_name: the mapped axis of the shards of a batch; None where the batch is whole.
    """
    policy = FeatureNetwork(features, config.actor.hidden_sizes, environment.action_size)
    baseline = FeatureNetwork(features, config.baseline.hidden_sizes, 1)
    bound = optax.clip_by_global_norm(config.max_grad_norm)
    average = partial(sharding.mean_over_shards, axis_name=axis_name)

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
        # `jvp(w)` is J^T w [B, A]; `vjp(x)` is the mean of J x over the batch.
        action, jvp, vjp = linearized(lambda theta: mu(theta, batch.observation), state.theta, average)
        values, value_jvp, value_vjp = linearized(lambda v: state_value(v, batch.observation), state.v, average)
        next_values, _, next_vjp = linearized(lambda v: state_value(v, batch.next_observation), state.v, average)
        offset = batch.action - action
        q = equations.compatible_advantage(offset, jvp(state.w)) + values
        target = equations.td_target(config.reward_scale * batch.reward, batch.discount, next_values)
        error = target - q

        w, v, u = state.w, state.v, state.u
        if config.critic == "regression":
            # Least-squares change of w and v, with offsets scaled to unit size so both are weighted equally. The
            # square of an offset below sqrt(epsilon) is lost to rounding: the damping (Levenberg 1944) is 1 there,
            # leaving w unchanged, and near 0 elsewhere.
            epsilon = jnp.finfo(offset.dtype).eps
            size = jnp.sqrt(average(jnp.mean(offset**2)) + epsilon)
            unit, damping = offset / size, epsilon / size**2

            def normal(change: tuple[Params, Params]) -> tuple[Params, Params]:
                fit = equations.compatible_advantage(unit, jvp(change[0])) + value_jvp(change[1])
                return jax.tree.map(lambda g, c: g + damping * c, vjp(fit[:, None] * unit), change[0]), value_vjp(fit)

            # Advantage slopes are small compared with values, so the tolerance is tight; float32 may not reach it.
            change, _ = cg(normal, (vjp(error[:, None] * unit), value_vjp(error)), tol=1e-6, maxiter=100)
            w, v = ascend(w, 1 / size, change[0]), ascend(v, 1.0, change[1])
        else:
            v_step = value_vjp(error)
            if config.critic == "gq":
                projection = equations.compatible_advantage(offset, jvp(u))  # phi(s, a)^T u
                # The correction of w is zero, because phi(s', mu(s')) is.
                v_step = jax.tree.map(jnp.subtract, v_step, next_vjp(batch.discount * projection))
                u = ascend(u, config.correction_learning_rate, vjp((error - projection)[:, None] * offset))
            w = ascend(w, config.critic_learning_rate, vjp(error[:, None] * offset))
            v = ascend(v, config.baseline_learning_rate, v_step)

        # Equations 19 to 27 step all weights at once; with `regression`, the newly fitted critic is used immediately.
        guide = w if config.critic == "regression" else state.w
        theta_step = guide if config.gradient == "natural" else vjp(jvp(guide))
        theta = ascend(state.theta, config.actor_learning_rate, theta_step)
        metrics = {
            "critic_loss": jnp.mean(error**2),
            "actor_loss": equations.actor_loss(values),
            "q_mean": jnp.mean(q) / config.reward_scale,
        }
        return COPDACState(theta, w, v, u), average(metrics)

    def diagnostics(state: COPDACState, batch: Transition) -> Metrics:
        return {"actor_saturation": average(jnp.mean(jnp.abs(mu(state.theta, batch.observation)) > 0.99))}

    def ascend(weights: Params, rate: Scalar, step: Params) -> Params:
        bounded, _ = bound.update(step, bound.init(step))
        return jax.tree.map(lambda weight, s: weight + rate * s, weights, bounded)

    return Agent(init, act, value, update, diagnostics, config.gamma, config.batch_size)


def linearized(
    function: Callable[[Params], jax.Array], params: Params, average: Callable[[Params], Params] = lambda tree: tree
) -> tuple[jax.Array, Callable[[Params], jax.Array], Callable[[jax.Array], Params]]:
    """Linearises a function of parameters over a batch.

    Args:
        function: params -> output [B, ...].
        params: the parameters at which it is linearised.
        average: over the shards of a batch, where it is split.

    Returns:
        The output; its Jacobian-vector product, tangent like params -> [B, ...]; its vector-Jacobian product, cotangent
        [B, ...] -> the mean over the batch, like params.
    """
    output, jvp = jax.linearize(function, params)
    transposed = jax.linear_transpose(jvp, params)
    return output, jvp, lambda cotangent: average(transposed(cotangent / len(cotangent))[0])
