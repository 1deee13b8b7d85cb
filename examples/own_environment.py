"""An environment of your own: two pure functions and three sizes.

A cart on a rail is pushed to the middle. Run it from the repository's root with

    jaxddpg train configs/pendulum.yaml --environment.name examples.own_environment:cart

and give it numbers by `--environment.parameters.push 4.0`: they are inputs of the compiled program like any other.
"""

import jax
import jax.numpy as jnp

import jaxddpg as jd


def cart(push: float = 2.0, dt: float = 0.1) -> jd.Environment:
    """Position and speed are observed; the reward is minus the squared distance and a little of the effort."""
    limit = 50

    def reset(key):
        position, speed = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        state = (position, speed, jnp.zeros((), jnp.int32))
        return state, jnp.stack([position, speed])

    def step(key, state, action):
        position, speed, time = state
        speed = speed + dt * push * action[0]
        position = position + dt * speed
        reward = -(position**2) - 0.01 * action[0] ** 2
        truncated = time + 1 >= limit
        moved = (position, speed, time + 1)
        fresh, fresh_observation = reset(key)
        final_observation = jnp.stack([position, speed])
        return jax.tree.map(lambda new, old: jnp.where(truncated, new, old), fresh, moved), jd.TimeStep(
            observation=jnp.where(truncated, fresh_observation, final_observation),
            final_observation=final_observation,
            reward=reward,
            terminated=jnp.zeros((), bool),
            truncated=truncated,
        )

    return jd.Environment(reset, step, observation_size=2, action_size=1, episode_length=limit)
