"""The straightforward loop that one would write: DDPG with flax, optax and flashbax on gymnax, all in one donated scan,
seeds by vmap. In `bench/peers.py` it is what the trainer is measured against."""

import serve  # noqa: I001, first, for it starts the clock

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple


def make(
    num_members: int,
    hidden: int,
    batch_size: int,
    capacity: int,
    num_steps: int,
    *,
    warmup: int = 1_000,
    gamma: float = 0.99,
    tau: float = 0.005,
    learning_rate: float = 1e-3,
    noise: float = 0.1,
    seed: int = 0,
) -> tuple[Any, Callable, Callable]:
    """The state of all members after a random warm-up, a chunk of steps with an update each, and their evaluation."""
    import flashbax
    import gymnax
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn

    environment, params = gymnax.make("Pendulum-v1")
    limit = 2.0

    class Actor(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(2):
                x = nn.relu(nn.Dense(hidden)(x))
            return limit * jnp.tanh(nn.Dense(1)(x))

    class Critic(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, action: jax.Array) -> jax.Array:
            x = jnp.concatenate([x, action], -1)
            for _ in range(2):
                x = nn.relu(nn.Dense(hidden)(x))
            return nn.Dense(1)(x)[..., 0]

    class Learner(NamedTuple):
        actor: Any
        critic: Any
        target_actor: Any
        target_critic: Any
        actor_optimizer: Any
        critic_optimizer: Any

    class State(NamedTuple):
        learner: Learner
        buffer: Any
        world: Any
        observation: jax.Array
        key: jax.Array

    actor, critic, optimizer = Actor(), Critic(), optax.adam(learning_rate)
    buffer = flashbax.make_item_buffer(
        max_length=capacity, min_length=batch_size, sample_batch_size=batch_size, add_sequences=False, add_batches=False
    )

    def interact(state: State, action: jax.Array, key: jax.Array) -> State:
        observation, world, reward, terminated, _, info = environment.step(key, state.world, action, params)
        item = {
            "observation": state.observation,
            "action": action,
            "reward": reward,
            "next_observation": info["final_observation"],
            "terminated": terminated,
        }
        return state._replace(buffer=buffer.add(state.buffer, item), world=world, observation=observation)

    def update(learner: Learner, batch: dict[str, jax.Array]) -> Learner:
        next_action = actor.apply(learner.target_actor, batch["next_observation"])
        next_q = critic.apply(learner.target_critic, batch["next_observation"], next_action)
        target = batch["reward"] + gamma * (1.0 - batch["terminated"]) * next_q

        def critic_loss(params: Any) -> jax.Array:
            return jnp.mean((critic.apply(params, batch["observation"], batch["action"]) - target) ** 2)

        updates, critic_optimizer = optimizer.update(jax.grad(critic_loss)(learner.critic), learner.critic_optimizer)
        new_critic = optax.apply_updates(learner.critic, updates)

        def actor_loss(params: Any) -> jax.Array:
            return -jnp.mean(critic.apply(new_critic, batch["observation"], actor.apply(params, batch["observation"])))

        updates, actor_optimizer = optimizer.update(jax.grad(actor_loss)(learner.actor), learner.actor_optimizer)
        new_actor = optax.apply_updates(learner.actor, updates)
        follow = partial(optax.incremental_update, step_size=tau)
        return Learner(
            new_actor,
            new_critic,
            follow(new_actor, learner.target_actor),
            follow(new_critic, learner.target_critic),
            actor_optimizer,
            critic_optimizer,
        )

    def init(key: jax.Array) -> State:
        key, actor_key, critic_key, reset_key = jax.random.split(key, 4)
        observation, world = environment.reset(reset_key, params)
        actor_params, critic_params = (
            actor.init(actor_key, observation),
            critic.init(critic_key, observation, jnp.zeros(1)),
        )
        item = {
            "observation": observation,
            "action": jnp.zeros(1),
            "reward": jnp.zeros(()),
            "next_observation": observation,
            "terminated": jnp.zeros((), bool),
        }
        optimizers = optimizer.init(actor_params), optimizer.init(critic_params)
        learner = Learner(actor_params, critic_params, actor_params, critic_params, *optimizers)
        state = State(learner, buffer.init(item), world, observation, key)

        def random_step(state: State, key: jax.Array) -> tuple[State, None]:
            action_key, step_key = jax.random.split(key)
            action = jax.random.uniform(action_key, (1,), minval=-limit, maxval=limit)
            return interact(state, action, step_key), None

        key, warmup_key = jax.random.split(state.key)
        return jax.lax.scan(random_step, state._replace(key=key), jax.random.split(warmup_key, warmup))[0]

    def step(state: State, _: None) -> tuple[State, None]:
        key, noise_key, step_key, sample_key = jax.random.split(state.key, 4)
        action = actor.apply(state.learner.actor, state.observation)
        action = jnp.clip(action + noise * limit * jax.random.normal(noise_key, (1,)), -limit, limit)
        state = interact(state._replace(key=key), action, step_key)
        batch = buffer.sample(state.buffer, sample_key).experience
        return state._replace(learner=update(state.learner, batch)), None

    def chunk(state: State) -> State:
        return jax.lax.scan(step, state, None, length=num_steps)[0]

    def evaluate(learner: Learner, key: jax.Array) -> jax.Array:
        def play(key: jax.Array) -> jax.Array:
            reset_key, key = jax.random.split(key)
            observation, world = environment.reset(reset_key, params)

            def step(carry: Any, key: jax.Array) -> Any:
                observation, world = carry
                action = actor.apply(learner.actor, observation)
                observation, world, reward, *_ = environment.step(key, world, action, params)
                return (observation, world), reward

            return jnp.sum(jax.lax.scan(step, (observation, world), jax.random.split(key, 200))[1])

        return jnp.mean(jax.vmap(play)(jax.random.split(key, 32)))

    # Copies: initial targets and networks are one buffer, which cannot be given away twice.
    state = jax.tree.map(jnp.copy, jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(seed), num_members)))
    many = jax.jit(jax.vmap(evaluate, in_axes=(0, None)))
    return state, jax.jit(jax.vmap(chunk), donate_argnums=0), many


def prepare(spec: dict[str, Any]) -> Callable[[], int]:
    import jax
    import numpy as np
    import optax

    shape = (spec["members"], spec["hidden"], spec["batch_size"], spec["capacity"], spec["updates"])
    state, chunk, _ = make(*shape, warmup=max(1_000, spec["batch_size"]))

    def play() -> int:
        nonlocal state
        state = jax.block_until_ready(chunk(state))
        return int(np.sum(optax.tree.get(state.learner.critic_optimizer, "count")))

    return play


def learn(spec: dict[str, Any]) -> Iterator[tuple[int, float]]:
    import jax

    steps = 500
    state, chunk, evaluate = make(spec["members"], spec["hidden"], 256, 100_000, steps, seed=spec["seed"])
    for number in range(1, 60):
        state = chunk(state)
        yield 1_000 + number * steps, float(evaluate(state.learner, jax.random.key(number)).min())


if __name__ == "__main__":
    serve.main(prepare, learn)
