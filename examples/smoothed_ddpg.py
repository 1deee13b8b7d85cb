"""An algorithm of one's own, from a file: DDPG whose target smooths over actions near that of the target policy.

jaxddpg train configs/pendulum.yaml --agent '{algorithm: examples.smoothed_ddpg:smoothed_ddpg, batch_size: 128}'
"""

import jax
import jax.numpy as jnp

import jaxddpg as jd


def smoothed_ddpg(environment, batch_size, axis_name, target_noise=0.2, **numbers):
    """As in TD3 (Fujimoto et al. 2018, section 5.3), with one critic. Further `numbers` are settings of DDPG."""
    config = jd.settings.DDPG(batch_size=batch_size, **numbers)
    agent = jd.ddpg(environment, config, axis_name)
    actor = jd.Actor(environment.action_size, config.actor.hidden_sizes, "none", config.actor.final_bound)
    critic = jd.Critic(config.critic.hidden_sizes, 0, "none", config.critic.final_bound)

    def update(key, clock, state, batch):
        """Moves the reward by what smoothing changes in the target: all else is DDPG's."""
        noise = jd.equations.smoothing_noise(key, batch.action.shape, target_noise, 2.5 * target_noise)
        action = actor.apply(state.target_actor, batch.next_observation)
        smoothed = critic.apply(state.target_critic, batch.next_observation, jnp.clip(action + noise, -1.0, 1.0))
        change = smoothed - critic.apply(state.target_critic, batch.next_observation, action)
        change = jax.lax.stop_gradient(batch.discount * change) / config.reward_scale
        return agent.update(key, clock, state, batch.replace(reward=batch.reward + change))

    return agent._replace(update=update)
