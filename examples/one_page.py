"""DDPG on one page: the whole algorithm in one loop, from the pieces of the package.

`python examples/one_page.py` learns Pendulum in a minute. The trainer does the same thing as one compiled scan, with
the same keys, so that both give the same numbers.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxddpg as jd
from jaxddpg.settings import DDPG, Actor, Critic
from jaxddpg.training.evaluation import evaluate
from jaxddpg.training.loop import streams

WARMUP = 150
CONFIG = DDPG(batch_size=128, actor=Actor(hidden_sizes=(64, 64)), critic=Critic(hidden_sizes=(64, 64)))


def train(num_steps: int, num_envs: int = 4, updates: int = 2, seed: int = 0):
    """Learns for `num_steps` vector steps and returns the agent with its final state."""
    environment = jd.from_gymnax("Pendulum-v1")
    agent, noise, replay = jd.ddpg(environment, CONFIG), jd.noise.ornstein_uhlenbeck(), jd.replay.uniform(50_000)
    reset, step = jax.jit(jax.vmap(environment.reset)), jax.jit(jax.vmap(environment.step))
    act, update, add, disturb = map(jax.jit, (agent.act, agent.update, replay.add, noise.sample))
    sample = jax.jit(replay.sample, static_argnums=3)

    init_key, interaction_key, learning_key, *_ = streams(jax.random.key(seed))
    agent_key, reset_key, noise_key = jax.random.split(init_key, 3)
    learner = agent.init(agent_key)
    environment_state, observation = reset(jax.random.split(reset_key, num_envs))
    disturbance_state = noise.init(noise_key, (num_envs, environment.action_size))
    replay_state = replay.init(jd.Experience.zeros(environment))

    for number in range(WARMUP + num_steps):
        clock = jd.Clock(epoch=np.uint32(0), step=np.uint32(number), num_envs=num_envs)

        # Learn: the critic from the replayed actions, the actor through the critic; both targets follow.
        if number >= WARMUP:
            sample_key, update_key = jax.random.split(jax.random.fold_in(learning_key, number))
            drawn = sample(sample_key, clock, replay_state, updates * agent.batch_size)
            for turn, key in enumerate(jax.random.split(update_key, updates)):
                part = slice(turn * agent.batch_size, (turn + 1) * agent.batch_size)
                rows = jax.tree.map(lambda x, part=part: x[part], drawn)
                learner, _ = update(key, clock, learner, jd.equations.transition(rows, agent.gamma))

        # Explore: by random actions at first, then by the policy with noise.
        action_key, key = jax.random.split(jax.random.fold_in(interaction_key, number))
        environment_key, noise_key = jax.random.split(key)
        if number < WARMUP:
            action = jax.random.uniform(action_key, (num_envs, environment.action_size), minval=-1.0, maxval=1.0)
        else:
            disturbance_state, disturbance = disturb(action_key, clock, disturbance_state)
            action = jnp.clip(act(learner, observation) + disturbance, -1.0, 1.0)

        # Add to the replay what was done and where it led.
        environment_state, time_step = step(jax.random.split(environment_key, num_envs), environment_state, action)
        rows = jd.Experience.from_time_step(observation, action, time_step)
        replay_state = add(clock, replay_state, rows)
        disturbance_state = noise.reset(noise_key, disturbance_state, rows.last)
        observation = time_step.observation

    return environment, agent, learner


if __name__ == "__main__":
    environment, agent, learner = train(num_steps=int(sys.argv[1]) if sys.argv[1:] else 5_000)
    metrics = evaluate(
        jax.random.key(1),
        environment,
        lambda observation: agent.act(learner, observation),
        lambda observation: agent.value(learner, observation),
        agent.gamma,
        num_episodes=32,
    )
    print({name: round(float(value), 1) for name, value in metrics.items()})
