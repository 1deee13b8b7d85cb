"""What is learned: trains experiments with ten seeds each, evaluates every seed on new episodes, and prints the
tables.

    python bench/scores.py                          # all of them: hours on two cores
    python bench/scores.py pendulum "swimmer, TD3"  # some of them
    python bench/scores.py --table                  # README's table, from bench/results/scores.csv
    python bench/scores.py --table algorithms       # the first of docs/algorithms.md: algorithms by environments
    python bench/scores.py --table family           # the second: what single settings contribute
    python bench/scores.py --table precision        # that of docs/devices.md: the shipped configs in both precisions
    python bench/scores.py --table libraries        # that of docs/environments.md: MuJoCo Playground and Brax

Each experiment is two commands, `jaxddpg train` with the arguments in its row and `jaxddpg evaluate`; its rows in the
CSV are replaced, those of the others stay. The seeds are 0 to 9 unless a row says otherwise; settings were searched for
on seeds from 100.
"""

import argparse
import csv
import json
import shlex
import tempfile

import common
import numpy as np

from jaxddpg.envs.registry import CONTINUOUS, PUBLISHED
from jaxddpg.statistics import confidence_interval, interquartile_mean

RESULTS = common.RESULTS / "scores.csv"
EVALUATED = ("num_episodes", "member", "seed", "return_mean", "return_std", "overestimation")
COLUMNS = ("experiment", "env_steps", *EVALUATED, "critic_loss")
EPISODES = 1_000
SHIPPED = {
    "pendulum": "configs/pendulum.yaml",
    "pendulum, D4PG": "configs/pendulum_d4pg.yaml",
    "pendulum, FastTD3": "configs/pendulum_fasttd3.yaml",
    "double_integrator": "configs/double_integrator.yaml",
    "mountain_car_continuous": "configs/mountain_car_continuous.yaml",
    "reacher": "configs/reacher.yaml",
    "swimmer": "configs/swimmer.yaml",
    "goddard": "configs/goddard.yaml",
    "lillicrap2015": "configs/lillicrap2015.yaml",
}
ORDER = ("DDPG", "TD3", "D4PG", "FastTD3")
_LADDER = (
    "configs/pendulum.yaml --noise '{color: ladder, min_scale: 0.0, max_scale: 0.6}' --training.updates_per_step 4 "
    "--agent.critic_learning_rate 1e-3"
)
_FAST = "--agent.algorithm fasttd3 --agent.decoupled_weight_decay 0"


def _column(config: str, base: str, support: str) -> dict[str, str]:
    """The arguments of all algorithms on the environment of a config, which has the algorithm `base`; `support` is that
    of the categorical critics."""
    flags = {
        "DDPG": "--agent.algorithm ddpg",
        "TD3": "--agent.algorithm td3",
        "D4PG": f"--agent.algorithm d4pg {support}",
        "FastTD3": f"{_FAST} {support}",
    }
    return {name: config if name == base else f"{config} {own}" for name, own in flags.items()}


_ROCKET = (
    "reward_scale: 20, gamma: 0.9999, tau: 0.02, actor_learning_rate: 3.0e-4, critic_learning_rate: 1.0e-3, "
    "batch_size: 128, learning_rate_decay_steps: 200000, max_grad_norm: 10, "
    "actor: {hidden_sizes: [64, 64], normalization: layer}, critic: {hidden_sizes: [64, 64], normalization: layer}"
)
_CAR = (
    "gamma: 0.9995, tau: 0.005, actor_learning_rate: 3.0e-4, critic_learning_rate: 1.0e-3, batch_size: 128, "
    "learning_rate_decay_steps: 400000, actor: {hidden_sizes: [64, 64], normalization: layer}, "
    "critic: {hidden_sizes: [64, 64], normalization: layer}"
)
ALGORITHMS = {
    "Pendulum-v1": {
        "DDPG": _LADDER,
        "TD3": f"{_LADDER} --agent.algorithm td3 --training.steps_per_epoch 496",
        "D4PG": "configs/pendulum_d4pg.yaml",
        "FastTD3": "configs/pendulum_fasttd3.yaml",
    },
    "MountainCarContinuous-v0": {
        "DDPG": f"configs/mountain_car_continuous.yaml --agent '{{algorithm: ddpg, {_CAR}}}'",
        "TD3": f"configs/mountain_car_continuous.yaml --agent '{{algorithm: td3, {_CAR}}}'",
        "D4PG": "configs/mountain_car_continuous.yaml --agent.algorithm d4pg",
        "FastTD3": "configs/mountain_car_continuous.yaml",
    },
    "Reacher-misc": _column("configs/reacher.yaml", "TD3", "--agent.v_min 0 --agent.v_max 20"),
    "Swimmer-misc": _column("configs/swimmer.yaml", "DDPG", "--agent.v_min 0 --agent.v_max 50"),
    "Rocket-goddard": {
        "DDPG": f"configs/goddard.yaml --agent '{{algorithm: ddpg, {_ROCKET}}}'",
        "TD3": f"configs/goddard.yaml --agent '{{algorithm: td3, {_ROCKET}}}'",
        "D4PG": "configs/goddard.yaml",
        "FastTD3": f"configs/goddard.yaml {_FAST}",
    },
}
"""The arguments of each algorithm on each environment, with equal env steps, networks, noise and n in a row; but
FastTD3 on the pendulum has its own."""
_SMALL = "actor: {hidden_sizes: [64, 64]}, critic: {hidden_sizes: [64, 64]}"
_INTEGRATOR = f"gamma: 0.9, tau: 0.01, critic_learning_rate: 1.0e-3, learning_rate_decay_steps: 100000, {_SMALL}"
FAMILY = {
    "double_integrator, DDPG": "configs/double_integrator.yaml "
    f"--agent '{{algorithm: ddpg, batch_size: 256, reward_scale: 0.1, actor_learning_rate: 3.0e-4, {_INTEGRATOR}}}'",
    "double_integrator, TD3, normalized": "configs/double_integrator.yaml "
    f"--agent '{{algorithm: td3, batch_size: 256, reward_scale: 0.1, normalize_observations: true, {_INTEGRATOR}}}'",
    "double_integrator, D4PG, normalized": "configs/double_integrator.yaml --agent.normalize_observations true",
    "mountain_car_continuous, 20 more seeds": "configs/mountain_car_continuous.yaml --seed 10 --num-seeds 20",
    "mountain_car_continuous, DDPG, 20 more seeds": "configs/mountain_car_continuous.yaml --seed 10 --num-seeds 20 "
    f"--agent '{{algorithm: ddpg, {_CAR}}}'",
    "mountain_car_continuous, DDPG, white noise": "configs/mountain_car_continuous.yaml --noise.smoothing 0 "
    f"--agent '{{algorithm: ddpg, {_CAR}}}'",
    "lillicrap2015, no batch normalization": "configs/lillicrap2015.yaml --agent.actor.normalization none "
    "--agent.critic.normalization none",
}
PRECISION = {f"{name}, bfloat16": f"{arguments} --agent.precision bfloat16" for name, arguments in SHIPPED.items()}
LIBRARIES = {
    name: f"configs/{path}.yaml --num-seeds 5"
    for name, path in {
        "playground:CartpoleBalance": "playground/cartpole_balance",
        "playground:CartpoleSwingup": "playground/cartpole_swingup",
        "playground:ReacherEasy": "playground/reacher_easy",
        "playground:PendulumSwingup": "playground/pendulum_swingup",
        "brax:inverted_double_pendulum": "brax/inverted_double_pendulum",
    }.items()
}
"""Those on environments of libraries, by the environment; they need the extras of the same names."""
_NAMES = {arguments: name for name, arguments in SHIPPED.items()}
CELLS = {
    environment: {
        algorithm: (_NAMES.get(arguments, f"{environment}, {algorithm}"), arguments)
        for algorithm, arguments in column.items()
    }
    for environment, column in ALGORITHMS.items()
}
"""The experiment of each algorithm on each environment, by name and arguments."""
_ALGORITHMS = {name: arguments for column in CELLS.values() for name, arguments in column.values()}
EXPERIMENTS = SHIPPED | PRECISION | FAMILY | _ALGORITHMS | LIBRARIES


def measure(name: str) -> list[dict[str, str]]:
    """Trains and evaluates one experiment, with ten seeds unless it says otherwise; its run is thrown away."""
    with tempfile.TemporaryDirectory() as directory:
        run = f"{directory}/run"
        common.jaxddpg("train", "--num-seeds", 10, *shlex.split(EXPERIMENTS[name]), "--run-dir", run)
        common.jaxddpg("evaluate", run, "--num-episodes", EPISODES)
        with open(f"{run}/metrics.jsonl") as file:
            last = {row["member"]: row for row in map(json.loads, file)}
        with open(f"{run}/evaluation.csv", newline="") as file:
            return [
                {
                    "experiment": name,
                    "env_steps": last[int(row["member"])]["env_steps"],
                    **{column: row[column] for column in EVALUATED},
                    "critic_loss": last[int(row["member"])]["train/critic_loss"],
                }
                for row in csv.DictReader(file)
            ]


def _of(rows: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    """The rows of one experiment."""
    return [row for row in rows if row["experiment"] == name]


def _returns(own: list[dict[str, str]]) -> np.ndarray:
    return np.array([float(row["return_mean"]) for row in own])


def _text(level: float) -> str:
    return f"{level:.1f}" if abs(level) >= 1 else f"{level:.4f}"


def table(rows: list[dict[str, str]], experiments: dict[str, str]) -> str:
    """The Markdown table of those experiments that are in the CSV."""
    found = []
    for name, arguments in experiments.items():
        if not (own := _of(rows, name)):
            continue
        returns = _returns(own)
        low, high = confidence_interval(returns)
        found.append(
            {
                "experiment": name,
                "env steps": f"{int(own[0]['env_steps']):,}",
                "episodes": f"{int(own[0]['num_episodes']):,}",
                "IQM over seeds (95% CI)": f"{_text(interquartile_mean(returns))} ({_text(low)} to {_text(high)})",
                "worst seed": _text(returns.min()),
                "`jaxddpg train`": f"`{arguments}`",
            }
        )
    return common.table(found)


def comparison(rows: list[dict[str, str]]) -> str:
    """The Markdown table of algorithms by those environments on which all were measured: IQM over the seeds and, in
    parentheses, the worst of them."""
    found = []
    for environment, column in CELLS.items():
        own = {name: _of(rows, name) for name, _ in column.values()}
        if not all(own.values()):
            continue
        returns = {name: _returns(own[name]) for name in own}
        best = max(own, key=lambda name: interquartile_mean(returns[name]))
        env_steps = sorted({int(of_one[0]["env_steps"]) for of_one in own.values()})
        line = {"environment": environment, "env steps": f"{env_steps[0]:,}"}
        if len(env_steps) > 1:
            line["env steps"] += f" to {env_steps[-1]:,}"
        for algorithm in ORDER:
            name, _ = column[algorithm]
            mark = "**" if name == best else ""
            level, worst = _text(interquartile_mean(returns[name])), _text(returns[name].min())
            line[algorithm] = f"{mark}{level}{mark} ({worst})"
        found.append(line | {"best known": _text(CONTINUOUS[environment].optimal_return)})
    return common.table(found)


def libraries(rows: list[dict[str, str]]) -> str:
    """The Markdown table of environments of libraries, beside what was published."""
    found = []
    for name, arguments in LIBRARIES.items():
        if not (own := _of(rows, name)):
            continue
        returns = _returns(own)
        published = ", ".join(f"{level:g} ({by})" for by, level in PUBLISHED[name].items())
        found.append(
            {
                "environment": name,
                "env steps": f"{int(own[0]['env_steps']):,}",
                "IQM over seeds": _text(interquartile_mean(returns)),
                "every seed": ", ".join(_text(level) for level in returns),
                "published": published,
                "`jaxddpg train`": f"`{arguments}`",
            }
        )
    return common.table(found)


def precisions(rows: list[dict[str, str]]) -> str:
    """The Markdown table of the shipped experiments in both precisions, paired by seed."""
    found = []
    for name in SHIPPED:
        own = [_of(rows, experiment) for experiment in (name, f"{name}, bfloat16")]
        if not all(own):
            continue
        one, half = (
            {
                column: np.array([float(row.get(column) or "nan") for row in of_one])
                for column in ("return_mean", "overestimation", "critic_loss")
            }
            for of_one in own
        )
        digits = 1 if abs(interquartile_mean(one["return_mean"])) >= 1 else 4

        def interval(values: np.ndarray, digits: int = digits) -> str:
            low, high = confidence_interval(values)
            return f"{interquartile_mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

        line = {
            "config": name,
            "float32: IQM (95% CI)": interval(one["return_mean"]),
            "bfloat16: IQM (95% CI)": interval(half["return_mean"]),
            "paired difference (95% CI)": interval(half["return_mean"] - one["return_mean"]),
        }
        for column in ("overestimation", "critic_loss"):
            line[column.replace("_", " ")] = " / ".join(f"{np.median(values[column]):.3g}" for values in (one, half))
        found.append(line)
    return common.table(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; none: all of gymnax and our own"
    )
    parser.add_argument(
        "--table",
        nargs="?",
        const="shipped",
        choices=["shipped", "algorithms", "family", "precision", "libraries"],
        help="train nothing, print a table",
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXPERIMENTS):
        parser.error(f"there is no experiment {', '.join(unknown)}")
    rows = [*csv.DictReader(RESULTS.read_text().splitlines())] if RESULTS.exists() else []
    if not options.table:
        for name in options.names or [name for name in EXPERIMENTS if name not in LIBRARIES]:
            rows = [row for row in rows if row["experiment"] != name] + measure(name)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    if options.table == "algorithms":
        print(comparison(rows))
    elif options.table in ("precision", "libraries"):
        print({"precision": precisions, "libraries": libraries}[options.table](rows))
    else:
        print(table(rows, {None: EXPERIMENTS, "shipped": SHIPPED, "family": FAMILY}[options.table]))


if __name__ == "__main__":
    main()
