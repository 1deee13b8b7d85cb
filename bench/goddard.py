"""D4PG on Goddard's rocket: trains ten seeds, says how high they fly, and draws their thrust beside the best known.

    python bench/goddard.py           # trains, minutes on two cores
    python bench/goddard.py --table   # the figures, from bench/results/goddard.json

The best known flight is searched for without learning: the cross-entropy method on a thrust profile of 30 knots.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

import jaxddpg as jd
from jaxddpg.report.curves import by_epoch
from jaxddpg.report.rows import read_rows

RESULTS = common.RESULTS / "goddard.json"
PICTURE = common.ROOT / "docs" / "goddard.png"
ENVIRONMENT = jd.make_environment(jd.settings.Environment("Rocket-goddard"))


@jax.jit
def flight(thrusts: jax.Array) -> jax.Array:
    """The return of an open-loop profile: thrusts in [0, 1] of each of the 300 steps."""

    def step(carry: tuple, thrust: jax.Array) -> tuple[tuple, None]:
        state, total, running = carry
        state, time_step = ENVIRONMENT.step(jax.random.key(0), state, 2 * thrust[None] - 1)
        total += running * time_step.reward
        return (state, total, running * ~(time_step.terminated | time_step.truncated)), None

    state, _ = ENVIRONMENT.reset(jax.random.key(0))
    return jax.lax.scan(step, (state, jnp.zeros(()), jnp.ones(())), thrusts)[0][1]


def best_known() -> tuple[float, np.ndarray]:
    """The return and the thrusts [300] of the best profile that the cross-entropy method finds."""
    knots, steps = jnp.linspace(0, 150, 30), jnp.arange(ENVIRONMENT.episode_length)

    def profile(values: jax.Array) -> jax.Array:
        return jnp.interp(steps, knots, jnp.clip(values, 0, 1), right=0.0)

    def generation(belief: tuple, key: jax.Array) -> tuple[tuple, None]:
        mean, deviation = belief
        values = jnp.clip(mean + deviation * jax.random.normal(key, (1000, len(knots))), 0, 1)
        elite = values[jax.lax.top_k(jax.vmap(lambda v: flight(profile(v)))(values), 50)[1]]
        return (elite.mean(0), elite.std(0) + 0.002), None

    def search(key: jax.Array) -> jax.Array:
        start = (jnp.full(len(knots), 0.5), jnp.full(len(knots), 0.5))
        return jax.lax.scan(generation, start, jax.random.split(key, 150))[0][0]

    found = jax.jit(jax.vmap(search))(jax.random.split(jax.random.key(0), 4))
    profiles = jax.vmap(profile)(found)
    heights = jax.vmap(flight)(profiles)
    best = int(jnp.argmax(heights))
    return float(heights[best]), np.asarray(profiles[best])


def thrusts(control: Callable[[int, np.ndarray], float]) -> list[float]:
    """What a controller of step and observation does until the tank is empty, in [0, 1]."""
    state, observation = ENVIRONMENT.reset(jax.random.key(0))
    step, taken = jax.jit(ENVIRONMENT.step), []
    while observation[2] > 0 and len(taken) < ENVIRONMENT.episode_length:
        taken.append(float(control(len(taken), observation)))
        state, time_step = step(jax.random.key(0), state, jnp.array([2 * taken[-1] - 1]))
        observation = time_step.final_observation
    return taken


def measure() -> dict:
    """Trains `configs/goddard.yaml` in a directory that is thrown away."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        common.jaxddpg("train", "configs/goddard.yaml", "--run-dir", run)
        env_steps, metrics = by_epoch(read_rows(run / "metrics.jsonl"))
        returns = metrics["eval/return_mean"]
        policies = [jd.load_policy(run, member) for member in range(returns.shape[1])]
        profiles = [thrusts(lambda step, seen, policy=policy: policy(seen)[0]) for policy in policies]
    best, profile = best_known()
    return {
        "env_steps": env_steps.tolist(),
        "returns": returns.tolist(),
        "thrusts": profiles,
        "best_known": best,
        "best_known_thrusts": thrusts(lambda step, seen: profile[step]),
    }


def constant(thrust: float) -> float:
    """The return of one thrust from start to end."""
    return float(flight(jnp.full(ENVIRONMENT.episode_length, thrust)))


def landscape() -> tuple[np.ndarray, np.ndarray]:
    """Constant thrusts, a thousandth of full thrust apart, and their returns."""
    shares = np.linspace(0.5, 1.0, 501)
    return shares, np.array([constant(share) for share in shares])


def sentence(result: dict) -> str:
    """The outcome in figures."""
    returns = np.array(result["returns"], float)
    final, best = returns[-1], np.nanmax(returns, axis=0)
    lower, median, upper = np.quantile(final, [0.25, 0.5, 0.75])
    return (
        f"{len(final)} seeds after {result['env_steps'][-1]:,.0f} env steps: median {median:.5f}, "
        f"quartiles {lower:.5f} and {upper:.5f}, worst {final.min():.5f}, best {final.max():.5f}; "
        f"{np.sum(~(final > 0))} collapsed to the time limit. Best epoch of each seed: median {np.median(best):.5f}, "
        f"quartiles {np.quantile(best, 0.25):.5f} and {np.quantile(best, 0.75):.5f}. Full thrust {constant(1.0):.5f}, "
        f"best known {result['best_known']:.5f}. Constant thrusts a thousandth apart differ by up to "
        f"{np.abs(np.diff(np.log(landscape()[1]))).max():.1%}"
    )


def draw(result: dict) -> None:
    """Three panels: the altitude over training, the thrust of the final policies, the altitude of constant thrusts."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    heights, profiles, constants = figure.subplots(1, 3)
    env_steps, returns = np.array(result["env_steps"]), np.array(result["returns"], float)
    heights.plot(env_steps, returns, color="C0", alpha=0.3, linewidth=0.6)
    heights.plot(
        env_steps, np.median(returns, axis=1), color="C0", linewidth=1.8, label=f"D4PG, median of {returns.shape[1]}"
    )
    heights.set(title="Altitude over training", xlabel="env steps per member", ylabel="max h - 1")
    heights.xaxis.set_major_formatter(EngFormatter(sep=""))
    for number, taken in enumerate(result["thrusts"]):
        profiles.plot(taken, color="C0", alpha=0.3, linewidth=0.8, label=None if number else "D4PG, each seed")
    profiles.plot(result["best_known_thrusts"], color="k", linewidth=1.5, label="best known")
    profiles.set(title="Thrust of the final policies", xlabel="step, until the tank is empty", ylabel="of full thrust")
    constants.plot(*landscape(), color="C1", linewidth=0.8)
    constants.set(title="Altitude of a constant thrust", xlabel="of full thrust", ylabel="max h - 1")
    for axes in (heights, constants):
        axes.axhline(result["best_known"], color="0.4", linestyle="--", linewidth=1, label="best known")
        axes.axhline(constant(1.0), color="0.4", linestyle=":", linewidth=1, label="full thrust")
        axes.set(ylim=(0.009, 0.0132))
    for axes in (heights, profiles, constants):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="train nothing, print the figures and draw the picture")
    if not parser.parse_args().table:
        RESULTS.write_text(json.dumps(measure()) + "\n")
    result = json.loads(RESULTS.read_text())
    print(sentence(result))
    draw(result)


if __name__ == "__main__":
    main()
