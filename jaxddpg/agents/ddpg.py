"""Deep deterministic policy gradient: Lillicrap et al. 2015, arXiv 1509.02971, algorithm 1."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.struct import PyTreeNode

from jaxddpg import settings
from jaxddpg.parts import equations, sharding
from jaxddpg.parts.networks import Actor, Critic
from jaxddpg.types import Agent, Clock, Environment, Key, Metrics, Params, Scalar, Transition


class DDPGState(PyTreeNode):
    """Networks as flax variables ("params" and, with batch normalisation, "batch_stats") and Adam's moments."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


class Improvement(NamedTuple):
    """What one step of an optimiser makes."""

    variables: Params
    optimizer: optax.OptState
    loss: jax.Array
    q_mean: jax.Array
    gradient_norm: jax.Array


def ddpg(environment: Environment, config: settings.DDPG = settings.DDPG(), axis_name: str | None = None) -> Agent:
    """The agent for an environment's sizes; `config` holds numbers, traced or not, and shapes. `axis_name` is the
    mapped axis of the shards into which every batch falls; None where it is whole.

    The critic learns from the replayed, executed actions; the actor from its own recomputed ones, through the critic
    just updated; then both targets follow. With batch normalisation all four networks are normalised by the batch when
    learning; the running averages, which serve acting alone, are moved by each network's own step.
    """
    actor = Actor(
        environment.action_size,
        config.actor.hidden_sizes,
        config.actor.normalization,
        config.actor.final_bound,
        axis_name,
    )
    critic = Critic(
        config.critic.hidden_sizes,
        config.critic.action_layer,
        config.critic.normalization,
        config.critic.final_bound,
        axis_name,
    )
    average = partial(sharding.mean_over_shards, axis_name=axis_name)
    optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())
    follow = partial(equations.soft_update, tau=config.tau)
    normalizing = "batch" in (config.actor.normalization, config.critic.normalization)

    def init(key: Key) -> DDPGState:
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, environment.observation_size)), jnp.zeros((1, environment.action_size))
        actor_variables = actor.init(actor_key, observation)
        critic_variables = critic.init(critic_key, observation, action)
        return DDPGState(
            actor=actor_variables,
            critic=critic_variables,
            # Copies: a donated state may not hold one buffer twice.
            target_actor=jax.tree.map(jnp.copy, actor_variables),
            target_critic=jax.tree.map(jnp.copy, critic_variables),
            actor_optimizer=optimizer.init(actor_variables["params"]),
            critic_optimizer=optimizer.init(critic_variables["params"]),
        )

    def act(state: DDPGState, observation: jax.Array) -> jax.Array:
        return _infer(actor, state.actor, observation)

    def value(state: DDPGState, observation: jax.Array) -> jax.Array:
        return _infer(critic, state.critic, observation, act(state, observation)) / config.reward_scale

    def update(key: Key, clock: Clock, state: DDPGState, batch: Transition) -> tuple[DDPGState, Metrics]:
        del key  # the update draws nothing

        anneal = partial(clock.anneal, decay_steps=config.learning_rate_decay_steps)

        def critic_loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            next_action, _ = _learn(actor, state.target_actor, batch.next_observation)
            next_q, _ = _learn(critic, state.target_critic, batch.next_observation, next_action)
            target = equations.td_target(config.reward_scale * batch.reward, batch.discount, next_q)
            q, statistics = _learn(critic, variables, batch.observation, batch.action)
            return equations.critic_loss(q, target), (jnp.mean(q), statistics)

        rate = anneal(config.critic_learning_rate, config.final_critic_learning_rate)
        learned_critic = improve(critic_loss, decay, rate, state.critic, state.critic_optimizer, batch)

        def actor_loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            action, statistics = _learn(actor, variables, batch.observation)
            q, _ = _learn(critic, learned_critic.variables, batch.observation, action)
            return equations.actor_loss(q), (jnp.mean(q), statistics)

        rate = anneal(config.actor_learning_rate, config.final_actor_learning_rate)
        learned_actor = improve(actor_loss, None, rate, state.actor, state.actor_optimizer, batch)

        state = DDPGState(
            actor=learned_actor.variables,
            critic=learned_critic.variables,
            target_actor=follow(state.target_actor, learned_actor.variables),
            target_critic=follow(state.target_critic, learned_critic.variables),
            actor_optimizer=learned_actor.optimizer,
            critic_optimizer=learned_critic.optimizer,
        )
        metrics = {
            "critic_loss": learned_critic.loss,
            "actor_loss": learned_actor.loss,
            "q_mean": learned_critic.q_mean / config.reward_scale,
            "critic_gradient_norm": learned_critic.gradient_norm,
            "actor_gradient_norm": learned_actor.gradient_norm,
        }
        return state, metrics

    def improve(
        loss: Callable,
        decay: Callable[[jax.Array, jax.Array], jax.Array] | None,
        rate: Scalar,
        variables: Params,
        optimizer_state: optax.OptState,
        batch: Transition,
    ) -> Improvement:
        """One step down a `loss(variables, batch) -> loss, (mean of Q, statistics to store)`, its gradient with
        `decay(gradient, parameter)` for each parameter."""

        def of_params(params: Params, batch: Transition) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            return loss({**variables, "params": params}, batch)

        params, rows = variables["params"], len(batch.reward)
        microbatch_size = config.microbatch_size or (rows if normalizing else _default_microbatch_size(rows))
        (value, (q_mean, statistics)), gradient = average(_mean_gradient(of_params, params, batch, microbatch_size))
        if decay:
            gradient = jax.tree.map(decay, gradient, params)
        direction, optimizer_state = optimizer.update(gradient, optimizer_state)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        variables = {**variables, **statistics, "params": params}
        return Improvement(variables, optimizer_state, value, q_mean, optax.tree.norm(gradient))

    def decay(gradient: jax.Array, parameter: jax.Array) -> jax.Array:
        return gradient + config.critic.weight_decay * parameter if parameter.ndim > 1 else gradient

    def diagnostics(state: DDPGState, batch: Transition) -> Metrics:
        action, actor_units = actor.apply(state.actor, batch.observation, mutable=["intermediates"])
        _, critic_units = critic.apply(state.critic, batch.observation, batch.action, mutable=["intermediates"])
        return {
            "actor_saturation": average(jnp.mean(jnp.abs(action) > 0.99)),
            "actor_dead_units": dead(actor_units),
            "critic_dead_units": dead(critic_units),
        }

    def dead(hidden: Params) -> jax.Array:
        """The share of ReLU units [B, H] that are zero on the whole batch."""
        silent = average([jnp.mean(units == 0, axis=0) for units in jax.tree.leaves(hidden)])
        return jnp.mean(jnp.concatenate(silent) == 1)

    return Agent(init, act, value, update, diagnostics, config.gamma, config.batch_size)


def _default_microbatch_size(batch_size: int) -> int:
    """The rows of a microbatch whose activations a CPU core keeps at hand, 256 to 512; elsewhere the whole batch."""
    on_cpu = jax.default_backend() == "cpu"
    return max((rows for rows in range(256, 513) if on_cpu and batch_size % rows == 0), default=batch_size)


def _mean_gradient(loss: Callable, params: Params, batch: Transition, microbatch_size: int) -> Any:
    """`value_and_grad` of a `loss(params, batch)` that, as all that it returns, is a mean over rows, microbatch by
    microbatch."""
    differentiate = partial(jax.value_and_grad(loss, has_aux=True), params)
    if microbatch_size == len(batch.reward):
        return differentiate(batch)
    microbatches = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch)

    def add(total: Any, microbatch: Transition) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(microbatch)), None

    shapes = jax.eval_shape(differentiate, jax.tree.map(lambda x: x[0], microbatches))
    total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), microbatches)
    return jax.tree.map(lambda x: x / len(microbatches.reward), total)


def _infer(network: nn.Module, variables: Params, *inputs: jax.Array) -> Any:
    """The output with each row normalised by the running statistics."""
    return network.apply(variables, *inputs)


def _learn(network: nn.Module, variables: Params, *inputs: jax.Array) -> Any:
    """The output on a batch normalised by its own statistics, and the statistics then to store."""
    return network.apply(variables, *inputs, learning=True, mutable=["batch_stats"])
