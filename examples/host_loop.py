"""Environments that run on the host: TD3 in a loop around Gymnasium's environments.

`python examples/host_loop.py` learns Gymnasium's Pendulum in about a minute. Prefer environments written in JAX where
there are any. This loop has no checkpoints that resume exactly, because it cannot read the state of the environments;
it trains one agent, not a population; and every step moves data between host and device.
"""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import jaxddpg as jd
from jaxddpg.settings import TD3, Actor, Critic

CONFIG = TD3(
    batch_size=128,
    tau=0.02,
    reward_scale=0.1,
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    actor=Actor(hidden_sizes=(64, 64)),
    critic=Critic(hidden_sizes=(64, 64)),
)


def train(name: str = "Pendulum-v1", num_steps: int = 5_000, num_envs: int = 4, warmup: int = 250, seed: int = 0):
    """Learns for `num_steps` vector steps and returns the replay and the returns of all episodes that ended."""
    same_step = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    environments = gymnasium.make_vec(name, num_envs, vectorization_mode="sync", vector_kwargs=same_step)
    low, high = environments.single_action_space.low, environments.single_action_space.high
    size = environments.single_observation_space.shape[0]
    sizes = jd.Environment(None, None, observation_size=size, action_size=len(low), episode_length=1)  # nothing else
    agent, noise, replay = (
        jd.td3(sizes, CONFIG),
        jd.noise.gaussian(0.2),
        jd.replay.uniform(num_envs * (num_steps + warmup)),
    )

    @jax.jit
    def act(key, clock, learner, noise_state, observation):
        random_key, noise_key = jax.random.split(key)
        noise_state, disturbance = noise.sample(noise_key, clock, noise_state)
        chosen = jnp.clip(agent.act(learner, observation) + disturbance, -1.0, 1.0)
        uniform = jax.random.uniform(random_key, chosen.shape, minval=-1.0, maxval=1.0)
        return noise_state, jnp.where(clock.step < warmup, uniform, chosen)

    @jax.jit
    def learn(key, clock, learner, replay_state):
        sample_key, update_key = jax.random.split(key)
        windows = replay.sample(sample_key, clock, replay_state, agent.batch_size)
        return agent.update(update_key, clock, learner, jd.equations.transition(windows, agent.gamma))[0]

    add = jax.jit(replay.add, donate_argnums=1)
    agent_key, noise_key, key = jax.random.split(jax.random.key(seed), 3)
    learner, noise_state = agent.init(agent_key), noise.init(noise_key, (num_envs, len(low)))
    replay_state, returns, total = replay.init(jd.Experience.zeros(sizes)), [], np.zeros(num_envs)
    observation, _ = environments.reset(seed=seed)
    for number in range(warmup + num_steps):
        clock = jd.Clock(epoch=np.uint32(0), step=np.uint32(number), num_envs=num_envs)
        act_key, learn_key = jax.random.split(jax.random.fold_in(key, number))
        if number >= warmup:
            learner = learn(learn_key, clock, learner, replay_state)
        noise_state, action = act(act_key, clock, learner, noise_state, observation)
        following, reward, terminated, truncated, info = environments.step(
            low + (np.asarray(action) + 1) / 2 * (high - low)
        )
        final, total = following.copy(), total + reward
        for ended in np.flatnonzero(terminated | truncated):
            final[ended] = info["final_obs"][ended]  # where the last action led; `following` begins the next episode
            returns.append(total[ended])
            total[ended] = 0
        step = jd.TimeStep(following, final, reward.astype(np.float32), terminated, truncated)
        replay_state = add(clock, replay_state, jd.Experience.from_time_step(observation, action, step))
        observation = following
    return replay_state, returns


if __name__ == "__main__":
    _, returns = train()
    print(f"mean return of the last 20 episodes, with exploration: {np.mean(returns[-20:]):.1f}")
