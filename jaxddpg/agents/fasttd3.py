"""FastTD3: Seo et al. 2025, arXiv 2505.22642: TD3 with categorical critics and large batches from many environments."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from jaxddpg import settings
from jaxddpg.parts import descent, equations, sharding
from jaxddpg.parts.networks import Actor, CategoricalCritic, diagnose, network
from jaxddpg.types import Agent, Clock, Environment, Key, Metrics, Params, Transition


class FastTD3State(PyTreeNode):
    """The networks, as flax variables, and Adam's moments; each leaf of the critics is [2, ...]. The actor has no
    target."""

    actor: Params
    critics: Params
    target_critics: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


def fasttd3(
    environment: Environment, config: settings.FastTD3 = settings.FastTD3(), axis_name: str | None = None
) -> Agent:
    """Makes the FastTD3 agent for an environment.

    An update takes `policy_delay` steps of both critics, each on a batch of its own and followed by a soft update of
    their targets, then one step of the actor on the last of these batches. The next action is that of the online actor
    with clipped noise. With `clipped_double` both critics learn the projected target distribution with the smaller
    mean, and the actor ascends the smaller mean; else each critic learns its own, and the actor ascends their average.

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

    def logits(critics: Params, observation: jax.Array, action: jax.Array) -> jax.Array:
        """[2, B, K]"""
        return jax.vmap(critic.apply, in_axes=(0, None, None))(critics, observation, action)

    def q(critics: Params, observation: jax.Array, action: jax.Array) -> jax.Array:
        """[B]: what the actor ascends."""
        one, other = mean(jax.nn.softmax(logits(critics, observation, action)))
        # The gradient of `jnp.min` looks for what equals the minimum, and is 0 / 0 where XLA computes both differently.
        return jnp.where(one < other, one, other) if config.clipped_double else (one + other) / 2

    def init(key: Key) -> FastTD3State:
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, environment.observation_size)), jnp.zeros((1, environment.action_size))
        actor_variables = actor.init(actor_key, observation)
        initialize = jax.vmap(critic.init, in_axes=(0, None, None))
        critic_variables = initialize(jax.random.split(critic_key), observation, action)
        return FastTD3State(
            actor=actor_variables,
            critics=critic_variables,
            # Copies, because a donated state must not alias buffers.
            target_critics=jax.tree.map(jnp.copy, critic_variables),
            actor_optimizer=optimizer.init(actor_variables["params"]),
            critic_optimizer=optimizer.init(critic_variables["params"]),
        )

    def act(state: FastTD3State, observation: jax.Array) -> jax.Array:
        return actor.apply(state.actor, observation)

    def value(state: FastTD3State, observation: jax.Array) -> jax.Array:
        return q(state.critics, observation, act(state, observation)) / config.reward_scale

    def update(key: Key, clock: Clock, state: FastTD3State, batch: Transition) -> tuple[FastTD3State, Metrics]:
        batches = jax.tree.map(lambda x: x.reshape(config.policy_delay, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, config.policy_delay)
        state, metrics = jax.lax.scan(partial(critic_step, clock), state, (keys, batches))
        state, actor_metrics = actor_step(clock, state, jax.tree.map(lambda x: x[-1], batches))
        return state, jax.tree.map(jnp.mean, metrics) | actor_metrics

    def critic_step(clock: Clock, state: FastTD3State, inputs: tuple[Key, Transition]) -> tuple[FastTD3State, Metrics]:
        key, batch = inputs
        noise = equations.smoothing_noise(key, batch.action.shape, config.target_noise, config.target_noise_bound)

        def loss(critics: Params, rows: tuple[Transition, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            batch, noise = rows
            next_action = jnp.clip(actor.apply(state.actor, batch.next_observation) + noise, -1.0, 1.0)
            next_probabilities = jax.nn.softmax(logits(state.target_critics, batch.next_observation, next_action))
            reward = config.reward_scale * batch.reward
            project = jax.vmap(equations.categorical_target, in_axes=(0, None, None, None, None))
            targets = project(next_probabilities, reward, batch.discount, config.v_min, config.v_max)
            if config.clipped_double:
                smaller = jnp.argmin(mean(targets), axis=0)
                targets = jnp.broadcast_to(targets[smaller, jnp.arange(len(smaller))], targets.shape)
            predicted = logits(critics, batch.observation, batch.action)
            losses = jax.vmap(equations.categorical_loss)(predicted, targets)
            return jnp.sum(losses), (jnp.mean(mean(jax.nn.softmax(predicted))), {})

        step = descend(
            loss,
            learning_rate=clock.anneal(config.critic_learning_rate, config.final_critic_learning_rate, decay_steps),
            variables=state.critics,
            optimizer_state=state.critic_optimizer,
            batch=(batch, noise),
            weight_decay=config.critic.weight_decay,
        )
        state = state.replace(
            critics=step.variables,
            critic_optimizer=step.optimizer_state,
            target_critics=follow(state.target_critics, step.variables),
        )
        q_mean = step.aux / config.reward_scale
        return state, {"critic_loss": step.loss, "q_mean": q_mean, "critic_gradient_norm": step.gradient_norm}

    def actor_step(clock: Clock, state: FastTD3State, batch: Transition) -> tuple[FastTD3State, Metrics]:
        def loss(variables: Params, batch: Transition) -> tuple[jax.Array, tuple[None, Params]]:
            action = actor.apply(variables, batch.observation)
            return equations.actor_loss(q(state.critics, batch.observation, action)), (None, {})

        step = descend(
            loss,
            learning_rate=clock.anneal(config.actor_learning_rate, config.final_actor_learning_rate, decay_steps),
            variables=state.actor,
            optimizer_state=state.actor_optimizer,
            batch=batch,
        )
        state = state.replace(actor=step.variables, actor_optimizer=step.optimizer_state)
        return state, {"actor_loss": step.loss, "actor_gradient_norm": step.gradient_norm}

    def diagnostics(state: FastTD3State, batch: Transition) -> Metrics:
        action, actor_units = actor.apply(state.actor, batch.observation, mutable=["intermediates"])
        run = partial(critic.apply, mutable=["intermediates"])
        _, critic_units = jax.vmap(run, in_axes=(0, None, None))(state.critics, batch.observation, batch.action)
        return diagnose(average, action, actor_units, critic_units)

    rows = config.policy_delay * config.batch_size
    return Agent(init, act, value, update, diagnostics, config.gamma, rows, critic_steps=config.policy_delay)
