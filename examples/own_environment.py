"""An environment of your own: where an episode starts, how the state moves, and what is observed of it.

A cart on a rail is pushed to the middle. Run it from the repository's root with

    jaxddpg train configs/pendulum.yaml --environment.name examples.own_environment:cart

and give it numbers by `--environment.parameters.push 4.0`: they are inputs of the compiled program like any other.
"""

import jax
import jax.numpy as jnp

import jaxddpg as jd


def cart(push: float = 2.0, dt: float = 0.1) -> jd.Environment:
    """Position and speed are observed; the reward is minus the squared distance and a little of the effort."""

    def reset(key):
        return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

    def step(key, state, action):
        position, speed = state
        speed = speed + dt * push * action[0]
        position = position + dt * speed
        reward = -(position**2) - 0.01 * action[0] ** 2
        return jnp.stack([position, speed]), reward, jnp.zeros((), bool)

    return jd.episodic(reset, step, observe=lambda state: state, observation_size=2, action_size=1, episode_length=50)
