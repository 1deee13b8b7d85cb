"""Side by side with its peers: the same work, interleaved in one run, and the time until Pendulum is solved.

    python bench/peers.py                    # all workloads: some 45 minutes on two quiet cores
    python bench/peers.py --learn            # time to -200, ten seeds each: some 30 minutes
    python bench/peers.py --table            # the tables of bench/README.md, from bench/results/peers.json
    python bench/peers.py --table precision  # that of docs/devices.md

Each trainer lives in an environment of its own, made below runs/peers/ on first use (several GB). A round is the same
number of updates for every trainer, checked against its optimizer's own counter; rounds take turns, in rotating order.
One member is pinned to one core and measured in CPU time, several have all cores and are measured in wall time.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import common

ENVIRONMENTS = {
    "jax-0.10.2": ("3.11", ["-e", str(common.ROOT), "jax==0.10.2", "flashbax==0.1.3"]),
    "jax-0.11.2": ("3.12", ["-e", str(common.ROOT), "jax==0.11.2", "flashbax==0.1.3"]),
    "rejax-0.1.3": ("3.11", ["rejax==0.1.3", "gymnax==0.0.9", "jax==0.10.2", "six"]),
    "rejax-0.1.2": ("3.11", ["rejax==0.1.2", "gymnax==0.0.9", "jax==0.10.2", "six"]),
    "sbx": ("3.11", ["torch==2.13.0", "sbx-rl==0.28.0"]),
    "sb3": ("3.11", ["torch==2.13.0", "stable-baselines3==2.9.2"]),
}
TRAINERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "products alone": ("jax-0.10.2", "floor.py", {"precision": "float32"}),
    "products alone, bfloat16": ("jax-0.10.2", "floor.py", {"precision": "bfloat16"}),
    "products alone, jax 0.11.2": ("jax-0.11.2", "floor.py", {"precision": "float32"}),
    "products alone, bfloat16, jax 0.11.2": ("jax-0.11.2", "floor.py", {"precision": "bfloat16"}),
    "jaxddpg": ("jax-0.10.2", "ours.py", {"algorithm": "ddpg", "precision": "float32"}),
    "jaxddpg, bfloat16": ("jax-0.10.2", "ours.py", {"algorithm": "ddpg", "precision": "bfloat16"}),
    "the loop": ("jax-0.10.2", "loop.py", {}),
    "jaxddpg, jax 0.11.2": ("jax-0.11.2", "ours.py", {"algorithm": "ddpg", "precision": "float32"}),
    "jaxddpg, bfloat16, jax 0.11.2": ("jax-0.11.2", "ours.py", {"algorithm": "ddpg", "precision": "bfloat16"}),
    "the loop, jax 0.11.2": ("jax-0.11.2", "loop.py", {}),
    "SBX DDPG": ("sbx", "sb3.py", {"package": "sbx", "algorithm": "DDPG"}),
    "SB3 DDPG": ("sb3", "sb3.py", {"package": "stable_baselines3", "algorithm": "DDPG"}),
    "jaxddpg TD3": ("jax-0.10.2", "ours.py", {"algorithm": "td3", "precision": "float32"}),
    "jaxddpg TD3, jax 0.11.2": ("jax-0.11.2", "ours.py", {"algorithm": "td3", "precision": "float32"}),
    "jaxddpg TD3, bfloat16, jax 0.11.2": ("jax-0.11.2", "ours.py", {"algorithm": "td3", "precision": "bfloat16"}),
    "rejax 0.1.3 TD3": ("rejax-0.1.3", "rejax_td3.py", {}),
    "rejax 0.1.2 TD3": ("rejax-0.1.2", "rejax_td3.py", {}),
    "SBX TD3": ("sbx", "sb3.py", {"package": "sbx", "algorithm": "TD3"}),
}
"""Environment, script and own settings. TD3 has two critics and a delay of 2 everywhere; an update is one of the
critics."""
POPULATIONS = [name for name, (_, script, _) in TRAINERS.items() if script != "sb3.py"]
DDPG = [name for name in POPULATIONS if "TD3" not in name]
ONE = {"members": 1, "hidden": 256, "batch_size": 256, "capacity": 100_000, "updates": 600, "pinned": True}
WORKLOADS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "16 members, 2x256, batch 256": (ONE | {"members": 16, "updates": 80, "pinned": False}, POPULATIONS),
    "16 members, 2x64, batch 256": (ONE | {"members": 16, "hidden": 64, "updates": 800, "pinned": False}, POPULATIONS),
    "16 members, 2x512, batch 256": (ONE | {"members": 16, "hidden": 512, "updates": 20, "pinned": False}, DDPG),
    "1 member, 2x256, batch 256": (ONE, [*TRAINERS]),
    "1 member, 2x256, batch 8192": (ONE | {"batch_size": 8192, "updates": 20}, DDPG),
    "1 member, 2x256, batch 256, 1M rows": (ONE | {"capacity": 1_000_000}, DDPG),
}
"""What all do, and who can."""
HOST_LOOP = {"learning_starts": 1_000, "learning_rate": 1e-3, "gamma": 0.98}
REJAX = {"fill_buffer": 1_000, "learning_rate": 1e-3}
SMALL = {"mode": "learn", "members": 1, "hidden": 64, "batch_size": 256, "capacity": 100_000}
LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jaxddpg, 10 seeds at once": (
        "jaxddpg",
        {
            "experiment": {
                "agent": {
                    "tau": 0.05,
                    "reward_scale": 0.1,
                    "actor_learning_rate": 2e-3,
                    "critic_learning_rate": 5e-3,
                    "batch_size": 128,
                    "actor": {"hidden_sizes": [64, 64]},
                    "critic": {"hidden_sizes": [64, 64]},
                },
                "replay": {"capacity": 100_000},
                "training": {"num_envs": 4, "warmup_steps": 250, "steps_per_epoch": 250, "num_epochs": 200},
                "population": {"num_seeds": 10},
            }
        },
    ),
    "the loop, 10 seeds at once": ("the loop", SMALL | {"members": 10}),
    "rejax 0.1.3 TD3": ("rejax 0.1.3 TD3", SMALL | {"policy_delay": 1, "settings": REJAX}),
    "SBX DDPG": ("SBX DDPG", SMALL | {"settings": HOST_LOOP}),
    "SB3 DDPG": ("SB3 DDPG", SMALL | {"settings": HOST_LOOP}),
}


def command(trainer: str, spec: dict[str, Any]) -> list[str]:
    environment, script, own = TRAINERS[trainer]
    return [str(interpreter(environment)), str(common.ROOT / "bench" / "peers" / script), json.dumps(spec | own)]


def interpreter(name: str) -> Path:
    """The Python of an environment, which is made where it is missing."""
    place = common.ROOT / "runs" / "peers" / name
    version, packages = ENVIRONMENTS[name]
    if not (place / "complete").exists():
        python = shutil.which(f"python{version}") or sys.exit(f"peers.py needs python{version} on the path for {name}")
        print(f"making {place} ...", file=sys.stderr, flush=True)
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([python, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", "--quiet", *packages], check=True)
        (place / "complete").touch()
    return place / "bin" / "python"


def compare(spec: dict[str, Any], trainers: list[str], rounds: int) -> dict[str, Any]:
    """Updates per second of each trainer in each round."""
    clock = "cpu" if spec["pinned"] else "wall"
    rates: dict[str, list[float]] = {trainer: [] for trainer in trainers}
    ready = {}
    with ExitStack() as stack:
        processes = {}
        for trainer in trainers:
            pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            process = stack.enter_context(subprocess.Popen(command(trainer, {"mode": "speed"} | spec), **pipe))
            processes[trainer] = process
            # One after the other, so that none is timed while another compiles.
            ready[trainer] = json.loads(process.stdout.readline())["ready"]
        for number in range(rounds):
            for turn in range(len(trainers)):
                trainer = trainers[(number + turn) % len(trainers)]
                process = processes[trainer]
                process.stdin.write("\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                rates[trainer].append(answer["updates"] / answer[clock])
    return {
        "clock": clock,
        "spec": spec,
        "updates_per_second": rates,
        "seconds_to_ready": ready,
        "machine": common.facts(),
    }


def time_to_learn(learner: str, seed: int) -> dict[str, Any]:
    """Seconds from the start of a process until two evaluations in a row are at least -200."""
    trainer, spec = LEARNERS[learner]
    experiment = spec.get("experiment")
    if experiment:
        spec = spec | {"experiment": experiment | {"population": {"num_seeds": 10, "seed": 10 * seed}}}
    done = subprocess.run(
        command(trainer, {"mode": "learn", "seed": seed} | spec), check=True, capture_output=True, text=True
    )
    *_, last = map(json.loads, done.stdout.splitlines())
    return last


def ratios(one: list[float], other: list[float]) -> list[float]:
    """Those of the rounds, each of which is a pair."""
    return [a / b for a, b in zip(one, other, strict=True)]


def ratio(one: list[float], other: list[float]) -> str:
    return f"{statistics.median(ratios(one, other)):.2f}"


def tables(result: dict[str, Any]) -> str:
    texts = []
    for workload, entry in result.get("workloads", {}).items():
        rates = entry["updates_per_second"]
        rows = []
        for trainer, own in rates.items():
            typical = statistics.median(own)
            release = ", jax 0.11.2" * trainer.endswith("jax 0.11.2")
            same = f"jaxddpg{' TD3' * ('TD3' in trainer)}{release}"
            floor = f"products alone{', bfloat16' * ('bfloat16' in trainer)}{release}"
            rows.append(
                {
                    "trainer": trainer,
                    "updates/s (median)": f"{typical:{',.0f' if typical >= 100 else '.3g'}}",
                    "of the products": ratio(own, rates[floor]),
                    "jaxddpg, same algorithm and jax, is": f"{ratio(rates[same], own)} times",
                }
            )
        per = "CPU second of one core" if entry["clock"] == "cpu" else "second of all cores"
        machine = f"{entry['machine']['cpu']}, {entry['machine']['date']}"
        texts.append(f"**{workload}**, per {per} ({machine})\n\n{common.table(rows)}")
    rows = [
        {
            "trainer": learner,
            "runs": len(runs),
            "solved": sum(run["held"] for run in runs),
            "seconds (median)": f"{statistics.median(run['seconds'] for run in runs):.1f}",
            "fastest and slowest": f"{min(r['seconds'] for r in runs):.1f} to {max(r['seconds'] for r in runs):.1f}",
            "env steps (median)": f"{statistics.median(run['env_steps'] for run in runs):,.0f}",
        }
        for learner, runs in result.get("learning", {}).items()
    ]
    return "\n\n".join([*texts, *([common.table(rows)] if rows else [])])


def precisions(result: dict[str, Any]) -> str:
    """How many times as many updates jaxddpg makes in bfloat16 as in float32: median, least and most of the rounds."""
    rows = []
    for workload, entry in result["workloads"].items():
        rates, row = entry["updates_per_second"], {"workload": workload}
        for release in ("jax 0.10.2", "jax 0.11.2"):
            suffix = ", jax 0.11.2" * (release == "jax 0.11.2")
            found = ratios(rates[f"jaxddpg, bfloat16{suffix}"], rates[f"jaxddpg{suffix}"])
            row[release] = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        rows.append(row)
    return common.table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--learn", action="store_true", help="time to -200 instead of updates per second")
    parser.add_argument("--seeds", type=int, default=10, help="of each trainer with --learn")
    parser.add_argument("--only", default="", help="workloads, or with --learn trainers, whose name has this")
    parser.add_argument(
        "--table", nargs="?", const="all", choices=["all", "precision"], help="run nothing, print tables"
    )
    options = parser.parse_args()
    path = common.RESULTS / "peers.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if not options.table:
        pins = {name: [pin for pin in pins if "==" in pin] for name, (_, pins) in ENVIRONMENTS.items()}
        result["packages"] = pins
        for name in ENVIRONMENTS:
            interpreter(name)
    if options.learn and not options.table:
        result["learning_machine"] = common.facts()
        for learner in LEARNERS:
            if options.only in learner:
                runs = result.setdefault("learning", {})[learner] = []
                for seed in range(options.seeds):
                    runs.append(time_to_learn(learner, seed))
                    print(learner, runs[-1], flush=True)
                    common.write("peers", result)
    elif not options.table:
        for workload, (spec, trainers) in WORKLOADS.items():
            if options.only in workload:
                result.setdefault("workloads", {})[workload] = compare(spec, trainers, options.rounds)
                common.write("peers", result)
                print(tables({"workloads": {workload: result["workloads"][workload]}}), flush=True)
    if options.table:
        print(precisions(result) if options.table == "precision" else tables(result))


if __name__ == "__main__":
    main()
