"""TD3 on one page: every equation of Fujimoto et al. 2018, algorithm 1, with flax and optax, and the loop around them.

`python examples/one_page_td3.py` learns Pendulum in a minute. `jd.td3` and the trainer do the same thing as one
compiled scan, with the same keys, so that both give the same numbers.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxddpg as jd
from jaxddpg.parts.networks import Actor, Critic
from jaxddpg.training.loop import streams

WARMUP, BATCH_SIZE, HIDDEN_SIZES, BOUND = 150, 128, (64, 64), 0.0625
GAMMA, TAU, LEARNING_RATE, DELAY, TARGET_NOISE, TARGET_NOISE_BOUND = 0.99, 0.005, 1e-3, 2, 0.2, 0.5


def train(num_steps: int, num_envs: int = 4, updates: int = 1, seed: int = 0):
    """Learns for `num_steps` vector steps, after each of which `updates` times the actor and `DELAY` times as often the
    critics take a step, and returns the environment, the policy and its parameters."""
    environment = jd.from_gymnax("Pendulum-v1")
    actor = Actor(
        action_size=environment.action_size, hidden_sizes=HIDDEN_SIZES, normalization="none", final_bound=BOUND
    )
    critic = Critic(hidden_sizes=HIDDEN_SIZES, action_layer=0, normalization="none", final_bound=BOUND)
    adam, noise, replay = optax.adam(LEARNING_RATE), jd.noise.ornstein_uhlenbeck(), jd.replay.uniform(50_000)

    @jax.jit
    def critic_step(key, critics, optimizer, target_actor, target_critics, batch):
        noise = jnp.clip(
            TARGET_NOISE * jax.random.normal(key, batch.action.shape), -TARGET_NOISE_BOUND, TARGET_NOISE_BOUND
        )
        next_action = jnp.clip(actor.apply(target_actor, batch.next_observation) + noise, -1.0, 1.0)
        next_q = jnp.minimum(*(critic.apply(target, batch.next_observation, next_action) for target in target_critics))
        target = batch.reward + batch.discount * next_q  # the discount is 0 where the episode terminated

        def loss(critics):
            errors = [critic.apply(each, batch.observation, batch.action) - target for each in critics]
            return sum(jnp.mean(error**2) for error in errors)

        step, optimizer = adam.update(jax.grad(loss)(critics), optimizer)
        return optax.apply_updates(critics, step), optimizer

    @jax.jit
    def actor_step(policy, optimizer, critics, target_actor, target_critics, batch):
        def loss(policy):
            return -jnp.mean(critic.apply(critics[0], batch.observation, actor.apply(policy, batch.observation)))

        step, optimizer = adam.update(jax.grad(loss)(policy), optimizer)
        policy = optax.apply_updates(policy, step)
        target_actor = optax.incremental_update(policy, target_actor, TAU)
        return policy, optimizer, target_actor, optax.incremental_update(critics, target_critics, TAU)

    reset, step = jax.jit(jax.vmap(environment.reset)), jax.jit(jax.vmap(environment.step))
    act, add, disturb = jax.jit(actor.apply), jax.jit(replay.add), jax.jit(noise.sample)
    sample = jax.jit(replay.sample, static_argnums=3)

    init_key, interaction_key, learning_key, *_ = streams(jax.random.key(seed))
    agent_key, reset_key, noise_key = jax.random.split(init_key, 3)
    actor_key, critic_key = jax.random.split(agent_key)
    environment_state, observation = reset(jax.random.split(reset_key, num_envs))
    first_action = jnp.zeros((num_envs, environment.action_size))
    policy = actor.init(actor_key, observation)
    critics = [critic.init(key, observation, first_action) for key in jax.random.split(critic_key)]
    target_actor, target_critics = policy, critics
    actor_optimizer, critic_optimizer = adam.init(policy), adam.init(critics)
    noise_state = noise.init(noise_key, first_action.shape)
    replay_state = replay.init(jd.Experience.zeros(environment))

    for number in range(WARMUP + num_steps):
        clock = jd.Clock(epoch=np.uint32(0), step=np.uint32(number), num_envs=num_envs)

        # Learn: the critics at each step from a batch of their own, the actor and all targets at every second one.
        if number >= WARMUP:
            sample_key, update_key = jax.random.split(jax.random.fold_in(learning_key, number))
            windows = sample(sample_key, clock, replay_state, updates * DELAY * BATCH_SIZE)
            rows = jd.equations.transition(windows, GAMMA)
            batches = [
                jax.tree.map(lambda x, i=i: x[i : i + BATCH_SIZE], rows) for i in range(0, len(rows.reward), BATCH_SIZE)
            ]
            keys = [key for keys in jax.random.split(update_key, updates) for key in jax.random.split(keys, DELAY)]
            for turn, (key, batch) in enumerate(zip(keys, batches, strict=True), start=1):
                critics, critic_optimizer = critic_step(
                    key, critics, critic_optimizer, target_actor, target_critics, batch
                )
                if turn % DELAY == 0:
                    policy, actor_optimizer, target_actor, target_critics = actor_step(
                        policy, actor_optimizer, critics, target_actor, target_critics, batch
                    )

        # Explore: by random actions at first, then by the policy with noise.
        action_key, key = jax.random.split(jax.random.fold_in(interaction_key, number))
        environment_key, noise_key = jax.random.split(key)
        if number < WARMUP:
            action = jax.random.uniform(action_key, first_action.shape, minval=-1.0, maxval=1.0)
        else:
            noise_state, disturbance = disturb(action_key, clock, noise_state)
            action = jnp.clip(act(policy, observation) + disturbance, -1.0, 1.0)

        # Add to the replay what was done and where it led.
        environment_state, time_step = step(jax.random.split(environment_key, num_envs), environment_state, action)
        rows = jd.Experience.from_time_step(observation, action, time_step)
        replay_state = add(clock, replay_state, rows)
        noise_state = noise.reset(noise_key, noise_state, rows.last)
        observation = time_step.observation

    return environment, act, policy, critics


if __name__ == "__main__":
    environment, act, policy, _ = train(num_steps=int(sys.argv[1]) if sys.argv[1:] else 5_000)

    def play(key):
        def step(carry, key):
            state, observation = carry
            state, time_step = environment.step(key, state, act(policy, observation))
            return (state, time_step.observation), time_step.reward

        return jax.lax.scan(step, environment.reset(key), jax.random.split(key, 200))[1].sum()

    returns = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(1), 32))
    print(f"mean return of 32 episodes: {returns.mean():.1f}")
