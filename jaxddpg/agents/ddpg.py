"""Deep deterministic policy gradient (DDPG): Lillicrap et al. 2015, arXiv 1509.02971, algorithm 1."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.struct import PyTreeNode

from jaxddpg import settings
from jaxddpg.parts import descent, equations, sharding
from jaxddpg.parts.networks import Actor, Critic, diagnose, network
from jaxddpg.types import Agent, Clock, Environment, Key, Metrics, Params, Transition


class DDPGState(PyTreeNode):
    """The networks, as flax variables ("params" and, with batch normalization, "batch_stats"), and Adam's moments."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


def ddpg(environment: Environment, config: settings.DDPG = settings.DDPG(), axis_name: str | None = None) -> Agent:
    """Makes the DDPG agent for an environment.

    An update takes one step of the critic on the replayed actions, then one of the actor on its own recomputed actions
    through the critic just updated, and moves both targets. With batch normalization, all four networks use batch
    statistics in updates; running averages are updated only by the network's own step and used only for acting.

    Args:
        environment: only its sizes are read.
        config: its numbers may be traced.
        axis_name: mapped axis over which the batch is sharded; None if it is not.
    """
    actor = network(
        Actor, config.actor, precision=config.precision, action_size=environment.action_size, axis_name=axis_name
    )
    critic = network(Critic, config.critic, precision=config.precision, axis_name=axis_name)
    optimizer, adam_step = descent.adam(config, axis_name)
    follow = partial(equations.soft_update, tau=config.tau)
    average = partial(sharding.mean_over_shards, axis_name=axis_name)

    def init(key: Key) -> DDPGState:
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, environment.observation_size)), jnp.zeros((1, environment.action_size))
        actor_variables = actor.init(actor_key, observation)
        critic_variables = critic.init(critic_key, observation, action)
        return DDPGState(
            actor=actor_variables,
            critic=critic_variables,
            # Copies, because a donated state must not alias buffers.
            target_actor=jax.tree.map(jnp.copy, actor_variables),
            target_critic=jax.tree.map(jnp.copy, critic_variables),
            actor_optimizer=optimizer.init(actor_variables["params"]),
            critic_optimizer=optimizer.init(critic_variables["params"]),
        )

    def act(state: DDPGState, observation: jax.Array) -> jax.Array:
        return actor.apply(state.actor, observation)

    def value(state: DDPGState, observation: jax.Array) -> jax.Array:
        return critic.apply(state.critic, observation, act(state, observation)) / config.reward_scale

    def update(key: Key, clock: Clock, state: DDPGState, batch: Transition) -> tuple[DDPGState, Metrics]:
        del key  # the update draws nothing
        anneal = partial(clock.anneal, decay_steps=config.learning_rate_decay_steps)
        descend = partial(adam_step, microbatch_size=_microbatch_size(config, len(batch.reward)))

        def critic_loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            next_action, _ = _train(actor, state.target_actor, batch.next_observation)
            next_q, _ = _train(critic, state.target_critic, batch.next_observation, next_action)
            target = equations.td_target(config.reward_scale * batch.reward, batch.discount, next_q)
            q, statistics = _train(critic, variables, batch.observation, batch.action)
            return equations.critic_loss(q, target), (jnp.mean(q), statistics)

        critic_step = descend(
            critic_loss,
            learning_rate=anneal(config.critic_learning_rate, config.final_critic_learning_rate),
            variables=state.critic,
            optimizer_state=state.critic_optimizer,
            batch=batch,
            weight_decay=config.critic.weight_decay,
        )

        def actor_loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[None, Params]]:
            action, statistics = _train(actor, variables, batch.observation)
            q, _ = _train(critic, critic_step.variables, batch.observation, action)
            return equations.actor_loss(q), (None, statistics)

        actor_step = descend(
            actor_loss,
            learning_rate=anneal(config.actor_learning_rate, config.final_actor_learning_rate),
            variables=state.actor,
            optimizer_state=state.actor_optimizer,
            batch=batch,
        )

        state = DDPGState(
            actor=actor_step.variables,
            critic=critic_step.variables,
            target_actor=follow(state.target_actor, actor_step.variables),
            target_critic=follow(state.target_critic, critic_step.variables),
            actor_optimizer=actor_step.optimizer_state,
            critic_optimizer=critic_step.optimizer_state,
        )
        return state, {
            "critic_loss": critic_step.loss,
            "actor_loss": actor_step.loss,
            "q_mean": critic_step.aux / config.reward_scale,
            "critic_gradient_norm": critic_step.gradient_norm,
            "actor_gradient_norm": actor_step.gradient_norm,
        }

    def diagnostics(state: DDPGState, batch: Transition) -> Metrics:
        action, actor_units = actor.apply(state.actor, batch.observation, mutable=["intermediates"])
        _, critic_units = critic.apply(state.critic, batch.observation, batch.action, mutable=["intermediates"])
        return diagnose(average, action, actor_units, critic_units)

    return Agent(init, act, value, update, diagnostics, config.gamma, config.batch_size)


def _microbatch_size(config: settings.DDPG, batch_size: int) -> int:
    """The size of the microbatches, 0 for the default; batch normalization needs the whole batch."""
    normalizing = "batch" in (config.actor.normalization, config.critic.normalization)
    return batch_size if normalizing else config.microbatch_size


def _train(module: nn.Module, variables: Params, *inputs: jax.Array) -> Any:
    """Applies a network in training mode: returns the output and the updated batch_stats."""
    return module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
