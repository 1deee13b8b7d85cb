"""A motor as an environment: current control of a permanent magnet synchronous motor of exciting-environments.

That package pins an old release of JAX, so it is installed without its dependencies:

    pip install diffrax jax-dataclasses
    pip install --no-deps exciting-environments==0.2.4
    jaxddpg train examples/motor.yaml
"""

from typing import Any

import jax
import jax.numpy as jnp

import jaxddpg as jd
from jaxddpg.types import Key, State


def pmsm(episode_length: int = 200, **parameters: Any) -> jd.Environment:
    """The voltages that make the currents of a motor follow a reference, which is drawn once per episode.

    The reward of a step is -0.15 times half the squared error of the normalized currents. An episode terminates with
    reward -1 where the currents are too large for the motor: without it, ending early would pay.

    Args:
        episode_length: steps of 0.1 ms after which an episode is truncated.
        parameters: of `exciting_environments.PMSM`, such as `static_params`.
    """
    import jax_dataclasses as jdc
    from exciting_environments import PMSM

    motor = PMSM(batch_size=1, control_state=["i_d", "i_q"], **parameters)
    properties = motor.env_properties
    limits = properties.physical_normalizations

    def currents(key: Key) -> tuple[jax.Array, jax.Array]:
        """Uniform among nine tenths of those that the motor tolerates, whose normalized squares add up to 1."""
        radius_key, angle_key = jax.random.split(key)
        radius = 0.9 * jnp.sqrt(jax.random.uniform(radius_key))
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        d, q = radius * jnp.cos(angle), radius * jnp.sin(angle)
        return limits.i_d.denormalize(d), limits.i_q.denormalize(q)

    def reset(key: Key) -> State:
        keys = jax.random.split(key, 4)
        state = motor.init_state(properties, jax.random.key_data(keys[0]))
        with jdc.copy_and_mutate(state, validate=False) as started:
            physical, reference = started.physical_state, started.reference
            physical.i_d, physical.i_q = currents(keys[1])
            reference.i_d, reference.i_q = currents(keys[2])
            # The voltages suffice for all of these currents up to a third of the largest speed.
            physical.omega_el = limits.omega_el.max * jax.random.uniform(keys[3], maxval=0.3)
        return started

    # A step returns other types and shapes than a reset does, so the state is a list of arrays like the first ones.
    like, structure = jax.tree.flatten(jax.eval_shape(reset, jax.random.key(0)))

    def leaves(state: Any) -> State:
        return [
            jnp.asarray(x, own.dtype).reshape(own.shape) for x, own in zip(jax.tree.leaves(state), like, strict=True)
        ]

    def step(key: Key, state: State, action: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        del key  # the motor is deterministic
        _, after = motor.step(jax.tree.unflatten(structure, state), action, properties)
        reward = jnp.ravel(motor.generate_reward(after, action, properties))[0]
        terminated = jnp.ravel(motor.generate_terminated(after, reward, properties))[0]
        return leaves(after), jnp.where(terminated, -1.0, reward).astype(jnp.float32), terminated

    def observe(state: State) -> jax.Array:
        observation = motor.generate_observation(jax.tree.unflatten(structure, state), properties)
        return jnp.ravel(observation).astype(jnp.float32)

    return jd.episodic(
        lambda key: leaves(reset(key)),
        step,
        observe,
        observation_size=jax.eval_shape(observe, like).size,
        action_size=2,
        episode_length=episode_length,
    )
