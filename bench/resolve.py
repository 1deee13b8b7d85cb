"""How long 1,000 variants take to be read, checked and resolved into the members of runs.

    python bench/resolve.py

As one compiled program, and as ten. Needs no JAX. Writes bench/results/resolve.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from jaxddpg import config

RATE = "agent.actor_learning_rate"
SWEEPS = {
    "one program": {RATE: {"geomspace": [1e-5, 1e-2, 1_000]}},
    "ten programs": {RATE: {"geomspace": [1e-5, 1e-2, 100]}, "agent.batch_size": [*range(40, 240, 20)]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="once, and write nothing")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in SWEEPS}
    for _ in range(1 if options.smoke else 7):
        for name, sweep in SWEEPS.items():
            start = time.perf_counter()
            plan = config.read("configs/pendulum.yaml", {"population.sweep": sweep, "population.num_seeds": 1})
            seconds[name].append(time.perf_counter() - start)
            assert (plan.num_members, len(plan.runs)) == (1_000, 1 if name == "one program" else 10)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(f"1,000 variants as {name}: {median:.2f} s")
    if not options.smoke:
        Path("bench/results/resolve.json").write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
