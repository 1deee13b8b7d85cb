"""The best returns on the tasks with two state variables, by value iteration on a grid, for several discount factors.

    python bench/optima.py           # minutes, writes bench/results/optima.json
    python bench/optima.py --table   # the table, from that file

The policy is greedy with respect to these values, interpolated between the points of the grid. The table has its mean
undiscounted return over 10,000 of the task's own starts, with the standard error. It is the return of an actual policy:
up to that error, a lower bound on the best.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import gymnax
import jax
import jax.numpy as jnp
import numpy as np

STARTS = 10_000


class Task(NamedTuple):
    """How the states of a task correspond to the points of a grid."""

    axes: tuple[np.ndarray, np.ndarray]
    actions: np.ndarray
    state: Callable[[jax.Array, jax.Array, Any], Any]
    """The state with these two variables, which takes all else from another state."""
    point: Callable[[Any], tuple[jax.Array, jax.Array]]
    """The two variables of a state."""
    gammas: tuple[float, ...]


TASKS = {
    "Pendulum-v1": Task(
        (np.linspace(-np.pi, np.pi, 601), np.linspace(-8, 8, 401)),
        np.linspace(-2, 2, 41),
        lambda angle, speed, state: state.replace(theta=angle, theta_dot=speed),
        lambda state: ((state.theta + jnp.pi) % (2 * jnp.pi) - jnp.pi, state.theta_dot),
        (0.99, 0.999),
    ),
    "MountainCarContinuous-v0": Task(
        (np.linspace(-1.2, 0.6, 501), np.linspace(-0.07, 0.07, 301)),
        np.linspace(-1, 1, 21),
        lambda position, speed, state: state.replace(position=position, velocity=speed),
        lambda state: (state.position, state.velocity),
        (0.99, 0.998, 0.9995, 0.9999),
    ),
}


def returns(name: str, gamma: float) -> np.ndarray:
    """The undiscounted returns [STARTS] of the policy that is best for this discount factor."""
    environment, parameters = gymnax.make(name)
    task, key = TASKS[name], jax.random.key(0)
    actions, horizon = jnp.asarray(task.actions, jnp.float32), parameters.max_steps_in_episode

    def move(state: Any, action: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        """The state after an action, its reward, and 0 if it is terminal, else 1."""
        _, after, reward, _, _ = environment.step_env(key, state, action[None], parameters)
        return after, reward, 1.0 - environment.is_terminated(after, parameters)

    def interpolated(values: jax.Array, point: tuple[jax.Array, jax.Array]) -> jax.Array:
        corners = [(0, 1.0)]
        for variable, axis in zip(point, task.axes, strict=True):
            index = (variable - axis[0]) / (axis[1] - axis[0])
            low = jnp.clip(jnp.floor(index), 0, len(axis) - 2)
            sides = ((low, low + 1 - index), (low + 1, index - low))
            corners = [(i * len(axis) + j.astype(int), w * v) for i, w in corners for j, v in sides]
        return sum(weight * values[corner] for corner, weight in corners)

    def action_values(values: jax.Array, after: Any, reward: jax.Array, continues: jax.Array) -> jax.Array:
        return reward + gamma * continues * interpolated(values, task.point(after))

    def policy_return(values: jax.Array, key: jax.Array) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            state, total, continuing = carry
            options = jax.vmap(move, (None, 0))(state, actions)
            best = jnp.argmax(action_values(values, *options))
            after, reward, continues = jax.tree.map(lambda x: x[best], options)
            return (after, total + continuing * reward, continuing * continues), None

        _, start = environment.reset_env(key, parameters)
        return jax.lax.scan(step, (start, 0.0, 1.0), length=horizon)[0][1]

    @jax.jit
    def solve(starts: jax.Array) -> jax.Array:
        _, start = environment.reset_env(key, parameters)
        grid = [jnp.asarray(axis, jnp.float32) for axis in np.meshgrid(*task.axes, indexing="ij")]
        states = jax.vmap(task.state, (0, 0, None))(grid[0].ravel(), grid[1].ravel(), start)
        moves = jax.vmap(jax.vmap(move, (0, None)), (None, 0))(states, actions)
        sweep = lambda _, values: jnp.max(action_values(values, *moves), axis=0)  # noqa: E731
        values = jax.lax.fori_loop(0, horizon, sweep, jnp.zeros(grid[0].size))
        return jax.vmap(policy_return, (None, 0))(values, starts)

    return np.asarray(solve(jax.random.split(key, STARTS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="compute nothing, print the table")
    if not parser.parse_args().table:
        rows = []
        for name, task in TASKS.items():
            for gamma in task.gammas:
                found = returns(name, gamma)
                mean, error = found.mean(), found.std() / STARTS**0.5
                rows.append({"environment": name, "gamma": gamma, "best return": f"{mean:.1f} ± {error:.1f}"})
        common.write("optima", {"rows": rows} | common.facts())
    print(common.table(json.loads((common.RESULTS / "optima.json").read_text())["rows"]))


if __name__ == "__main__":
    main()
