"""A sweep from Python: as a run with statistics, and as a plain `vmap` over a number of the experiment.

`python examples/sweep.py`, from the repository's root, takes half a minute and draws
runs/example_sweep/learning_curve.png.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

import jaxddpg as jd

SHORT = {"training.num_epochs": 4, "agent.actor.hidden_sizes": [64, 64], "agent.critic.hidden_sizes": [64, 64]}


def as_a_run(directory, overrides):
    """Three rates of the soft update x two scales of noise x two seeds: what each variant reaches."""
    axes = {"agent.tau": {"geomspace": [0.005, 0.05, 3]}, "noise.scale": [0.1, 0.3]}
    population = {"population.sweep": axes, "population.num_seeds": 2}
    (result,) = jd.sweep(jd.load("configs/pendulum.yaml", overrides | population), directory)
    return result.summary["variants"]


def by_vmap(taus, overrides):
    """The raw functions: one member for each tau, and the state in which its training ends."""
    member = jd.load("configs/pendulum.yaml", overrides).member()

    def trainer(tau):
        return jd.build(replace(member, agent=replace(member.agent, tau=tau)))

    keys = jax.vmap(jax.random.key)(jnp.arange(len(taus)))
    states = jax.jit(jax.vmap(lambda tau, key: trainer(tau).init(key)))(taus, keys)
    epoch = jax.jit(jax.vmap(lambda tau, *args: trainer(tau).epoch(*args), in_axes=(0, 0, None, 0)), donate_argnums=3)
    for number in range(1, member.training.num_epochs + 1):
        states, _ = epoch(taus, keys, jd.clock_at(member.training, number), states)
    return states


if __name__ == "__main__":
    for variant in as_a_run("runs/example_sweep", SHORT):
        print(variant)
    print(jax.tree.map(jnp.shape, by_vmap(jnp.array([0.005, 0.05]), SHORT).agent.actor))
