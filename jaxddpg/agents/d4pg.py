"""Distributed distributional deterministic policy gradients (D4PG): Barth-Maron et al. 2018, arXiv 1804.08617,
algorithm 1, in one process and with uniform replay. Its n-step returns are `replay.steps`."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from jaxddpg import settings
from jaxddpg.parts import descent, equations, sharding
from jaxddpg.parts.networks import Actor, CategoricalCritic, diagnose, network
from jaxddpg.types import Agent, Clock, Environment, Key, Metrics, Params, Transition


class D4PGState(PyTreeNode):
    """The networks, as flax variables, and Adam's moments."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


def d4pg(environment: Environment, config: settings.D4PG = settings.D4PG(), axis_name: str | None = None) -> Agent:
    """Makes the D4PG agent for an environment.

    The critic gives the distribution of the return on `num_atoms` atoms from `v_min` to `v_max`, the actor ascends its
    mean. An update takes one step of the critic, then one of the actor through the critic just updated, and moves both
    targets.

    Args:
        environment: only its sizes are read.
        config: its numbers may be traced.
        axis_name: mapped axis over which the batch is sharded; None if it is not.
    """
    actor = network(Actor, config.actor, precision=config.precision, action_size=environment.action_size)
    critic = network(CategoricalCritic, config.critic, precision=config.precision, num_atoms=config.num_atoms)
    optimizer, descend = descent.adam(config, axis_name)
    follow = partial(equations.soft_update, tau=config.tau)
    average = partial(sharding.mean_over_shards, axis_name=axis_name)
    decay_steps = config.learning_rate_decay_steps
    mean = partial(equations.expected_value, v_min=config.v_min, v_max=config.v_max)

    def q(variables: Params, observation: jax.Array, action: jax.Array) -> jax.Array:
        return mean(jax.nn.softmax(critic.apply(variables, observation, action)))

    def init(key: Key) -> D4PGState:
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, environment.observation_size)), jnp.zeros((1, environment.action_size))
        actor_variables = actor.init(actor_key, observation)
        critic_variables = critic.init(critic_key, observation, action)
        return D4PGState(
            actor=actor_variables,
            critic=critic_variables,
            # Copies, because a donated state must not alias buffers.
            target_actor=jax.tree.map(jnp.copy, actor_variables),
            target_critic=jax.tree.map(jnp.copy, critic_variables),
            actor_optimizer=optimizer.init(actor_variables["params"]),
            critic_optimizer=optimizer.init(critic_variables["params"]),
        )

    def act(state: D4PGState, observation: jax.Array) -> jax.Array:
        return actor.apply(state.actor, observation)

    def value(state: D4PGState, observation: jax.Array) -> jax.Array:
        return q(state.critic, observation, act(state, observation)) / config.reward_scale

    def update(key: Key, clock: Clock, state: D4PGState, batch: Transition) -> tuple[D4PGState, Metrics]:
        del key  # the update draws nothing

        def critic_loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            next_action = actor.apply(state.target_actor, batch.next_observation)
            next_logits = critic.apply(state.target_critic, batch.next_observation, next_action)
            reward = config.reward_scale * batch.reward
            target = equations.categorical_target(
                jax.nn.softmax(next_logits), reward, batch.discount, config.v_min, config.v_max
            )
            logits = critic.apply(variables, batch.observation, batch.action)
            return equations.categorical_loss(logits, target), (jnp.mean(mean(jax.nn.softmax(logits))), {})

        rate = clock.anneal(config.critic_learning_rate, config.final_critic_learning_rate, decay_steps)
        critic_step = descend(
            critic_loss,
            learning_rate=rate,
            variables=state.critic,
            optimizer_state=state.critic_optimizer,
            batch=batch,
            weight_decay=config.critic.weight_decay,
        )

        def actor_loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[None, Params]]:
            action = actor.apply(variables, batch.observation)
            return equations.actor_loss(q(critic_step.variables, batch.observation, action)), (None, {})

        rate = clock.anneal(config.actor_learning_rate, config.final_actor_learning_rate, decay_steps)
        actor_step = descend(
            actor_loss, learning_rate=rate, variables=state.actor, optimizer_state=state.actor_optimizer, batch=batch
        )
        state = D4PGState(
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

    def diagnostics(state: D4PGState, batch: Transition) -> Metrics:
        action, actor_units = actor.apply(state.actor, batch.observation, mutable=["intermediates"])
        _, critic_units = critic.apply(state.critic, batch.observation, batch.action, mutable=["intermediates"])
        return diagnose(average, action, actor_units, critic_units)

    return Agent(init, act, value, update, diagnostics, config.gamma, config.batch_size)
