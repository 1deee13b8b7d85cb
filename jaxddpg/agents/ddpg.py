"""Deep deterministic policy gradient: Lillicrap et al. 2015, arXiv 1509.02971, algorithm 1."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.struct import PyTreeNode

from jaxddpg import equations, settings
from jaxddpg.networks import Actor, Critic
from jaxddpg.types import Agent, Clock, Environment, Key, Metrics, Params, Scalar, Transition


class DDPGState(PyTreeNode):
    """Networks as flax variables ("params" and, with batch normalisation, "batch_stats") and Adam's moments."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


def ddpg(environment: Environment, config: settings.DDPG = settings.DDPG()) -> Agent:
    """The agent for an environment's sizes; `config` holds numbers, traced or not, and shapes.

    The critic learns from the replayed, executed actions; the actor from its own recomputed ones, through the critic
    just updated; then both targets follow. With batch normalisation all four networks are normalised by the batch when
    learning; the running averages, which serve acting alone, are moved by each network's own step.
    """
    actor = Actor(
        environment.action_size, config.actor.hidden_sizes, config.actor.normalization, config.actor.final_bound
    )
    critic = Critic(
        config.critic.hidden_sizes,
        config.critic.action_layer,
        config.critic.normalization,
        config.critic.final_bound,
    )
    optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())
    follow = partial(equations.soft_update, tau=config.tau)

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
        next_action, _ = _learn(actor, state.target_actor, batch.next_observation)
        next_q, _ = _learn(critic, state.target_critic, batch.next_observation, next_action)
        target = equations.td_target(config.reward_scale * batch.reward, batch.discount, next_q)

        def critic_loss(params: Params) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            q, statistics = _learn(critic, {**state.critic, "params": params}, batch.observation, batch.action)
            return equations.critic_loss(q, target), (q, statistics)

        (loss_of_critic, (q, statistics)), gradient = jax.value_and_grad(critic_loss, has_aux=True)(
            state.critic["params"]
        )
        gradient = jax.tree.map(
            lambda g, p: g + config.critic.weight_decay * p if p.ndim > 1 else g, gradient, state.critic["params"]
        )
        critic_gradient_norm = optax.tree.norm(gradient)
        rate = clock.anneal(
            config.critic_learning_rate, config.final_critic_learning_rate, config.learning_rate_decay_steps
        )
        params, critic_optimizer = _descend(rate, gradient, state.critic_optimizer, state.critic["params"])
        new_critic = {**state.critic, **statistics, "params": params}

        def actor_loss(params: Params) -> tuple[jax.Array, Params]:
            action, statistics = _learn(actor, {**state.actor, "params": params}, batch.observation)
            q, _ = _learn(critic, new_critic, batch.observation, action)
            return equations.actor_loss(q), statistics

        (loss_of_actor, statistics), gradient = jax.value_and_grad(actor_loss, has_aux=True)(state.actor["params"])
        rate = clock.anneal(
            config.actor_learning_rate, config.final_actor_learning_rate, config.learning_rate_decay_steps
        )
        params, actor_optimizer = _descend(rate, gradient, state.actor_optimizer, state.actor["params"])
        new_actor = {**state.actor, **statistics, "params": params}

        state = DDPGState(
            actor=new_actor,
            critic=new_critic,
            target_actor=follow(state.target_actor, new_actor),
            target_critic=follow(state.target_critic, new_critic),
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
        )
        metrics = {
            "critic_loss": loss_of_critic,
            "actor_loss": loss_of_actor,
            "q_mean": jnp.mean(q) / config.reward_scale,
            "critic_gradient_norm": critic_gradient_norm,
            "actor_gradient_norm": optax.tree.norm(gradient),
        }
        return state, metrics

    def gauges(state: DDPGState, batch: Transition) -> Metrics:
        action, actor_units = actor.apply(state.actor, batch.observation, mutable=["intermediates"])
        _, critic_units = critic.apply(state.critic, batch.observation, batch.action, mutable=["intermediates"])
        return {
            "actor_saturation": jnp.mean(jnp.abs(action) > 0.99),
            "actor_dead_units": _dead(actor_units),
            "critic_dead_units": _dead(critic_units),
        }

    def _descend(
        rate: Scalar, gradient: Params, optimizer_state: optax.OptState, params: Params
    ) -> tuple[Params, optax.OptState]:
        direction, optimizer_state = optimizer.update(gradient, optimizer_state)
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), optimizer_state

    return Agent(init, act, value, update, gauges, config.gamma, config.batch_size)


def _dead(hidden: Params) -> jax.Array:
    """The share of ReLU units [B, H] that are zero on the whole batch."""
    return jnp.concatenate([jnp.all(units == 0, axis=0) for units in jax.tree.leaves(hidden)]).mean()


def _infer(network: nn.Module, variables: Params, *inputs: jax.Array) -> Any:
    """The output with each row normalised by the running statistics."""
    return network.apply(variables, *inputs)


def _learn(network: nn.Module, variables: Params, *inputs: jax.Array) -> Any:
    """The output on a batch normalised by its own statistics, and the statistics then to store."""
    return network.apply(variables, *inputs, learning=True, mutable=["batch_stats"])
