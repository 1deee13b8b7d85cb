"""Twin delayed deep deterministic policy gradient (TD3): Fujimoto et al. 2018, arXiv 1802.09477, algorithm 1."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from jaxddpg import settings
from jaxddpg.parts import descent, equations, sharding
from jaxddpg.parts.networks import Actor, Critic, diagnose, network
from jaxddpg.types import Agent, Clock, Environment, Key, Metrics, Params, Transition


class TD3State(PyTreeNode):
    """The networks, as flax variables, and Adam's moments; each leaf of the critics is [num_critics, ...]."""

    actor: Params
    critics: Params
    target_actor: Params
    target_critics: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


def td3(environment: Environment, config: settings.TD3 = settings.TD3(), axis_name: str | None = None) -> Agent:
    """Makes the TD3 agent for an environment.

    An update takes `policy_delay` steps of the critics, each on a batch of its own, then one step of the actor on the
    last of these batches, and moves all targets. All critics learn from the smallest of the target values at the target
    policy's action with clipped noise; the actor ascends the first critic.

    Args:
        environment: only its sizes are read.
        config: its numbers may be traced.
        axis_name: mapped axis over which the batch is sharded; None if it is not.
    """
    actor = network(Actor, config.actor, precision=config.precision, action_size=environment.action_size)
    critic = network(Critic, config.critic, precision=config.precision)
    optimizer, descend = descent.adam(config, axis_name)
    follow = partial(equations.soft_update, tau=config.tau)
    average = partial(sharding.mean_over_shards, axis_name=axis_name)
    decay_steps = config.learning_rate_decay_steps

    def q(critics: Params, observation: jax.Array, action: jax.Array) -> jax.Array:
        """[num_critics, B]"""
        return jax.vmap(critic.apply, in_axes=(0, None, None))(critics, observation, action)

    def first(critics: Params) -> Params:
        return jax.tree.map(lambda x: x[0], critics)

    def init(key: Key) -> TD3State:
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, environment.observation_size)), jnp.zeros((1, environment.action_size))
        critic_keys = jax.random.split(critic_key, config.num_critics)
        actor_variables = actor.init(actor_key, observation)
        critic_variables = jax.vmap(critic.init, in_axes=(0, None, None))(critic_keys, observation, action)
        return TD3State(
            actor=actor_variables,
            critics=critic_variables,
            # Copies, because a donated state must not alias buffers.
            target_actor=jax.tree.map(jnp.copy, actor_variables),
            target_critics=jax.tree.map(jnp.copy, critic_variables),
            actor_optimizer=optimizer.init(actor_variables["params"]),
            critic_optimizer=optimizer.init(critic_variables["params"]),
        )

    def act(state: TD3State, observation: jax.Array) -> jax.Array:
        return actor.apply(state.actor, observation)

    def value(state: TD3State, observation: jax.Array) -> jax.Array:
        return critic.apply(first(state.critics), observation, act(state, observation)) / config.reward_scale

    def update(key: Key, clock: Clock, state: TD3State, batch: Transition) -> tuple[TD3State, Metrics]:
        batches = jax.tree.map(lambda x: x.reshape(config.policy_delay, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, config.policy_delay)
        state, metrics = jax.lax.scan(partial(critic_step, clock), state, (keys, batches))
        state, actor_metrics = actor_step(clock, state, jax.tree.map(lambda x: x[-1], batches))
        return state, jax.tree.map(jnp.mean, metrics) | actor_metrics

    def critic_step(clock: Clock, state: TD3State, inputs: tuple[Key, Transition]) -> tuple[TD3State, Metrics]:
        key, batch = inputs
        noise = equations.smoothing_noise(key, batch.action.shape, config.target_noise, config.target_noise_bound)

        def loss(critics: Params, rows: tuple[Transition, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            batch, noise = rows
            next_action = jnp.clip(actor.apply(state.target_actor, batch.next_observation) + noise, -1.0, 1.0)
            next_q = jnp.min(q(state.target_critics, batch.next_observation, next_action), axis=0)
            target = equations.td_target(config.reward_scale * batch.reward, batch.discount, next_q)
            values = q(critics, batch.observation, batch.action)
            return jnp.sum(jax.vmap(equations.critic_loss, in_axes=(0, None))(values, target)), (jnp.mean(values), {})

        step = descend(
            loss,
            learning_rate=clock.anneal(config.critic_learning_rate, config.final_critic_learning_rate, decay_steps),
            variables=state.critics,
            optimizer_state=state.critic_optimizer,
            batch=(batch, noise),
            weight_decay=config.critic.weight_decay,
        )
        return state.replace(critics=step.variables, critic_optimizer=step.optimizer_state), {
            "critic_loss": step.loss,
            "q_mean": step.aux / config.reward_scale,
            "critic_gradient_norm": step.gradient_norm,
        }

    def actor_step(clock: Clock, state: TD3State, batch: Transition) -> tuple[TD3State, Metrics]:
        def loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[None, Params]]:
            action = actor.apply(variables, batch.observation)
            return equations.actor_loss(critic.apply(first(state.critics), batch.observation, action)), (None, {})

        step = descend(
            loss,
            learning_rate=clock.anneal(config.actor_learning_rate, config.final_actor_learning_rate, decay_steps),
            variables=state.actor,
            optimizer_state=state.actor_optimizer,
            batch=batch,
        )
        state = state.replace(
            actor=step.variables,
            actor_optimizer=step.optimizer_state,
            target_actor=follow(state.target_actor, step.variables),
            target_critics=follow(state.target_critics, state.critics),
        )
        return state, {"actor_loss": step.loss, "actor_gradient_norm": step.gradient_norm}

    def diagnostics(state: TD3State, batch: Transition) -> Metrics:
        action, actor_units = actor.apply(state.actor, batch.observation, mutable=["intermediates"])
        run = partial(critic.apply, mutable=["intermediates"])
        _, critic_units = jax.vmap(run, in_axes=(0, None, None))(state.critics, batch.observation, batch.action)
        return diagnose(average, action, actor_units, critic_units)

    rows = config.policy_delay * config.batch_size
    return Agent(init, act, value, update, diagnostics, config.gamma, rows, critic_steps=config.policy_delay)
