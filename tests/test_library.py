"""The library half is used by itself, without the application: no configuration files, no runs, no command line."""

import subprocess
import sys

PROGRAM = """
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp

from jaxddpg.agents.ddpg import ddpg
from jaxddpg.envs.episodic import episodic
from jaxddpg.parts import noise, replay
from jaxddpg.settings import DDPG, Actor, Critic, Evaluation, Training
from jaxddpg.training.loop import clock_at, make_trainer

environment = episodic(
    reset=lambda key: jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0),
    step=lambda key, state, action: (state, -((action[0] - state[0]) ** 2), jnp.ones((), bool)),
    observe=lambda state: state,
    observation_size=1,
    action_size=1,
    episode_length=1,
)
training = Training(num_envs=2, updates_per_step=Fraction(1), warmup_steps=8, steps_per_epoch=10, num_epochs=1)


@jax.jit
def train(config, key):
    agent = ddpg(environment, config)
    trainer = make_trainer(
        environment, agent, noise.ornstein_uhlenbeck(), replay.uniform(64), training, Evaluation(num_episodes=3)
    )
    state, metrics = trainer.epoch(key, clock_at(training, 1), trainer.init(key))
    return metrics | trainer.evaluate(key, clock_at(training, 1), state.agent)


settings = DDPG(batch_size=8, actor=Actor((4,)), critic=Critic((4,)))
rates = jax.tree.leaves(settings)
assert settings.tau in rates and settings.critic_learning_rate in rates, rates
metrics = train(settings, jax.random.key(0))
assert metrics["episodes_ended"] == 20, metrics
assert jnp.isfinite(metrics["critic_loss"]) and metrics["return_mean"] < 0, metrics
application = ("config", "report", "runs", "cli", "check")
found = [name for name in sys.modules if name.startswith(tuple(f"jaxddpg.{part}" for part in application))]
assert not found, found
"""


def test_an_agent_is_trained_without_the_application():
    """Settings are pytrees whose numbers are traced, whatever else was imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
