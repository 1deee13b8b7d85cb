"""What a replay costs: memory and time of the compiled epoch at 100,000 and at 1,000,000 rows, 16 members.

    python bench/memory.py

Each capacity runs in a process of its own, so that its peak memory is its own; the times are taken in turn, in pairs.
Writes bench/results/memory.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import common

from jaxddpg.config import build

CAPACITIES = (100_000, 1_000_000)


def one(capacity: int, members: int, rounds: int) -> dict[str, float]:
    """Runs `rounds` epochs; bytes are those of this process or, from the compiler, of one member's program."""
    import jax

    from jaxddpg import config
    from jaxddpg.training.loop import clock_at
    from jaxddpg.training.placement import use_all_cores
    from jaxddpg.training.population import Population

    settings = config.parse(
        {
            "agent": {"batch_size": 64, "actor": {"hidden_sizes": [32]}, "critic": {"hidden_sizes": [32]}},
            "replay": {"capacity": capacity},
            "training": {"num_envs": 4, "warmup_steps": 100, "steps_per_epoch": 500},
        }
    ).experiment
    use_all_cores()
    population = Population(build.build, [settings.member()] * members, range(members))
    state, seconds = population.init(), []
    replay_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.replay))
    for epoch in range(1, rounds + 2):
        start = time.perf_counter()
        state, metrics = population.epoch(clock_at(settings.training, epoch), state)
        metrics()
        seconds.append(time.perf_counter() - start)
    memory = population.programs["epoch"].compiled.memory_analysis()
    last = jax.tree.leaves(population.gather(state.agent.critic_optimizer))[0]
    assert int(last[-1]) == (rounds + 1) * settings.training.steps_per_epoch
    return {
        "replay_bytes": replay_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "program_alias_bytes": memory.alias_size_in_bytes,
        "program_temporary_bytes": memory.temp_size_in_bytes,
        "program_replay_bytes": replay_bytes // members,
        "seconds_per_vector_step": statistics.median(seconds[1:]) / settings.training.steps_per_epoch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small and short, writes nothing")
    parser.add_argument("--capacity", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    members, rounds, pairs = (2, 1, 1) if options.smoke else (16, 5, 5)
    if options.capacity:
        print(json.dumps(one(options.capacity, members, rounds)))
        return
    capacities = (1_000, 10_000) if options.smoke else CAPACITIES
    results: dict[int, list[dict[str, float]]] = {capacity: [] for capacity in capacities}
    flags = ["--smoke"] if options.smoke else []
    for _ in range(pairs):
        for capacity in capacities:
            command = [sys.executable, __file__, "--capacity", str(capacity), *flags]
            results[capacity].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    small, large = ([run for run in results[capacity]] for capacity in capacities)
    growth = large[0]["replay_bytes"] - small[0]["replay_bytes"]
    summary = {
        "peak_rss_growth_in_replays": statistics.median(
            (b["peak_rss_bytes"] - a["peak_rss_bytes"]) / growth for a, b in zip(small, large, strict=True)
        ),
        "temporaries_in_replays": large[0]["program_temporary_bytes"] / large[0]["program_replay_bytes"],
        "aliased_in_replays": large[0]["program_alias_bytes"] / large[0]["program_replay_bytes"],
        "step_seconds_large_over_small": statistics.median(
            b["seconds_per_vector_step"] / a["seconds_per_vector_step"] for a, b in zip(small, large, strict=True)
        ),
        "capacities": capacities,
        "members": members,
        "pairs": pairs,
    }
    print(json.dumps(summary, indent=2))
    if not options.smoke:
        common.write("memory", summary | common.facts())


if __name__ == "__main__":
    main()
