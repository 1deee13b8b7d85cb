"""How fast populations of different shapes learn Pendulum, and what they take.

    python bench/throughput.py            # all shapes: some 20 minutes on two cores
    python bench/throughput.py --table    # the table, from bench/results/throughput.json

Every shape runs in a process of its own. Rates are the median of several epochs in wall time, compilation apart, on all
cores; the number of updates is that of the optimizer's own counter. The floor is what the matrix products alone would
allow on as many cores as there are members; one member may be above it, for it finds work for a second core. Writes
bench/results/throughput.json and docs/throughput.png.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import common

PICTURE = common.ROOT / "docs" / "throughput.png"
SHAPES = [(1, 1, 1), (128, 1, 1), (64, 64, 1), (1024, 8, 1), (1, 1, 16), (64, 64, 8), (1, 1, 64)]
"""Environments, updates per vector step, members."""
GRID = [
    {"num_envs": n, "updates_per_step": k, "members": m, "hidden": hidden, "batch_size": batch_size, "capacity": rows}
    for hidden, batch_size, rows, (n, k, m) in itertools.product((64, 256), (256, 8192), (100_000, 1_000_000), SHAPES)
]


def one(cell: dict[str, int], seconds: float, epochs: int) -> dict[str, float]:
    """Runs epochs of about so many seconds of one shape in this process."""
    # At some 200 GFLOP/s a core, and what else an update and a step take.
    update = 20 * cell["batch_size"] * cell["hidden"] ** 2 / 2e11 + 1e-4
    cores = min(cell["members"], len(os.sched_getaffinity(0)))
    step = (cell["updates_per_step"] * update + cell["num_envs"] * 1e-6) * cell["members"] / cores
    # Fewer steps would measure what an epoch does once, such as the diagnostics.
    measured, _, _ = common.measure(cell | {"steps_per_epoch": max(5, round(seconds / step))}, epochs)
    return measured | {
        "env_steps_per_second": measured["updates_per_second"] * cell["num_envs"] / cell["updates_per_step"],
        "sampled_transitions_per_second": measured["updates_per_second"] * cell["batch_size"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def floor(hidden: int, batch_size: int) -> float:
    """Updates per second that the products alone allow on one core, measured in a process of its own."""
    program = (
        f"import ceiling; ceiling.alone({min(os.sched_getaffinity(0))}); "
        f"print(1 / ceiling.floor_seconds({hidden}, {batch_size}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True, capture_output=True)
    return float(done.stdout)


def table(result: dict) -> str:
    rows = []
    for cell in result["cells"]:
        cores = min(cell["members"], result["cores"])
        limit = result["floor_updates_per_second"][f"{cell['hidden']}, {cell['batch_size']}"] * cores
        rows.append(
            {
                "hidden": f"2x{cell['hidden']}",
                "batch": cell["batch_size"],
                "rows": f"{cell['capacity'] // 1000:,}k",
                "envs, updates, members": f"{cell['num_envs']}, {cell['updates_per_step']}, {cell['members']}",
                "env-steps/s": f"{cell['env_steps_per_second']:,.0f}",
                "updates/s": f"{cell['updates_per_second']:,.0f}",
                "of the floor": f"{cell['updates_per_second'] / limit:.2f}",
                "transitions/s": f"{cell['sampled_transitions_per_second']:,.0f}",
                "compile s": f"{cell['compile_seconds']:.1f}",
                "peak MB": f"{cell['peak_rss_bytes'] / 1e6:,.0f}",
            }
        )
    return common.table(rows)


def draw(result: dict) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    labels = [f"{n} env{'s'[: n > 1]}\n{k} upd.\n{m} mem." for n, k, m in SHAPES]
    for axes, batch_size in zip(figure.subplots(1, 2), (256, 8192), strict=True):
        for number, (hidden, rows) in enumerate(itertools.product((64, 256), (100_000, 1_000_000))):
            kind = {"hidden": hidden, "capacity": rows, "batch_size": batch_size}
            found = [cell for cell in result["cells"] if kind.items() <= cell.items()]
            heights = [cell["updates_per_second"] for cell in found]
            label = f"2x{hidden}, {rows // 1000:,}k rows"
            axes.bar([i + 0.2 * number for i in range(len(found))], heights, 0.2, color=f"C{number}", label=label)
        axes.set(yscale="log", ylabel="updates per second, all members", title=f"batch {batch_size}")
        axes.set_xticks([i + 0.3 for i in range(len(SHAPES))], labels, fontsize=7)
        axes.legend(fontsize=7)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one small shape, writes nothing")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds, epochs = (0.1, 1) if options.smoke else (1.5, 3)
    if options.cell:
        print(json.dumps(one(json.loads(options.cell), seconds, epochs)))
        return
    if options.table:
        result = json.loads((common.RESULTS / "throughput.json").read_text())
        print(table(result))
        return
    cells = GRID[:1] if options.smoke else GRID
    result = {"floor_updates_per_second": {}, "cells": []} | common.facts()
    for cell in cells:
        kind = f"{cell['hidden']}, {cell['batch_size']}"
        if kind not in result["floor_updates_per_second"]:
            result["floor_updates_per_second"][kind] = floor(cell["hidden"], cell["batch_size"])
        command = [sys.executable, __file__, "--cell", json.dumps(cell), *["--smoke"][: options.smoke]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result["cells"].append(cell | json.loads(done.stdout))
        print(table(result | {"cells": result["cells"][-1:]}).splitlines()[-1], flush=True)
        if not options.smoke:
            common.write("throughput", result)
    if not options.smoke:
        draw(result)


if __name__ == "__main__":
    main()
