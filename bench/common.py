"""What the benchmarks share: what a machine is, where results go, the command, experiments of a given shape."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jaxddpg.config import build

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


def facts() -> dict[str, Any]:
    """Device, versions and date, as they stand beside every figure."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "gymnax")}
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
        "date": f"{datetime.date.today()}",
    }


def jaxddpg(*arguments: object, **options: Any) -> None:
    """Runs a command of this checkout, from its root, as `subprocess.run` does with these options."""
    subprocess.run([sys.executable, "-m", "jaxddpg", *map(str, arguments)], check=True, cwd=ROOT, **options)


def write(name: str, result: dict[str, Any]) -> None:
    """Leaves a result as JSON."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of rows with the same keys; empty without any."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    return "\n".join(lines + ["| " + " | ".join(f"{value}" for value in row.values()) + " |" for row in rows])


def shape(
    *,
    num_envs: int = 1,
    updates_per_step: int = 1,
    hidden: int = 256,
    batch_size: int = 256,
    capacity: int = 100_000,
    steps_per_epoch: int,
    members: int = 1,
    placement: int = 0,
    algorithm: str = "ddpg",
    precision: str = "float32",
) -> dict[str, Any]:
    """The sections of an experiment on Pendulum with two hidden layers and the settings that all trainers share."""
    network = {"hidden_sizes": [hidden, hidden]}
    capacity = -(-capacity // num_envs) * num_envs
    return {
        "environment": {"name": "Pendulum-v1"},
        "agent": {
            "algorithm": algorithm,
            "precision": precision,
            "batch_size": batch_size,
            "actor": network,
            "critic": network,
        },
        "replay": {"capacity": capacity},
        "training": {
            "num_envs": num_envs,
            "updates_per_step": updates_per_step,
            "warmup_steps": -(-max(1_000, batch_size) // num_envs),
            "steps_per_epoch": steps_per_epoch,
            "num_epochs": 1_000,
        },
        "population": {"num_seeds": members, "placement": placement},
    }


def copies(text: str, size: int) -> int:
    """Copies of an array of so many elements for each member, in the text of a compiled program."""
    return len(re.findall(rf"\[(?:\d+,)?{size}\][^ ]* copy(?:-done)?\(", text))


def measure(kind: dict[str, Any], epochs: int) -> tuple[dict[str, float], Any, Any]:
    """Runs epochs of a `shape` in this process: updates per second of all members together, the median of all epochs
    but the first, and the seconds that compiling took; the population, and its state at the end."""
    import optax

    from jaxddpg import config
    from jaxddpg.training.loop import clock_at
    from jaxddpg.training.placement import use_all_cores

    use_all_cores()
    experiment = config.parse(shape(**kind)).experiment
    population, training = build.populate(config.resolve(experiment).run()), experiment.training
    start = time.perf_counter()
    population.compile(clock_at(training, 0), False)
    compile_seconds = time.perf_counter() - start
    state, seconds = population.init(), []
    for epoch in range(1, epochs + 2):
        start = time.perf_counter()
        state, metrics = population.epoch(clock_at(training, epoch), state)
        metrics()
        seconds.append(time.perf_counter() - start)
    per_epoch = training.steps_per_epoch * kind.get("updates_per_step", 1)
    learner = getattr(state.agent, "agent", state.agent)  # inside the statistics of observations
    counts = optax.tree.get(population.gather(learner.critic_optimizer), "count")
    assert set(counts.ravel().tolist()) == {(epochs + 1) * per_epoch}
    rate = kind.get("members", 1) * per_epoch / statistics.median(seconds[1:])
    return {"updates_per_second": rate, "compile_seconds": compile_seconds}, population, state
