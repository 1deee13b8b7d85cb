"""Init, epoch and evaluation compiled for a TPU by its own compiler, without a TPU.

    pip install "libtpu==0.0.42.*"
    ulimit -s unlimited                      # the compiler recurses deeply
    python bench/tpu.py                      # all cases: about ten minutes; writes bench/results/tpu.json
    python bench/tpu.py --only bfloat16      # cases with this in their name
    python bench/tpu.py --table              # the table, from bench/results/tpu.json

Of each case: bytes of the state and of temporaries on a chip, whether the state is updated in place, copies of a whole
replay inside the loop, and collectives. The topology is a v5e of 2x2 chips. Compiled, not run.
"""

import argparse
import json
import os
import re
import sys
import time
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxddpg import config
from jaxddpg.config import build
from jaxddpg.parts import sharding
from jaxddpg.training.loop import clock_at

TOPOLOGY = "v5e:2x2"
VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""What libtpu reads, since there is no machine to ask."""
SHAPE = {"hidden": 256, "batch_size": 256, "capacity": 1_000_000, "steps_per_epoch": 1_000}
CHIPS = 4
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name}, {each} member{'s' * (each > 1)} per chip": {"algorithm": name, "members": CHIPS * each}
        for name, counts in {"ddpg": (1, 2, 8, 128), "td3": (2, 8), "d4pg": (2, 8), "fasttd3": (2, 8)}.items()
        for each in counts
    },
    "ddpg, 128 members per chip, 1,024,000 rows each": {
        "algorithm": "ddpg",
        "members": CHIPS * 128,
        "capacity": 1_024_000,
    },
    "ddpg, bfloat16, 2 members per chip": {"algorithm": "ddpg", "members": CHIPS * 2, "precision": "bfloat16"},
    "ddpg, 2 members in 4 shards": {"algorithm": "ddpg", "members": 2, "num_envs": 8, "shards": 4},
}
"""Shapes; the members of each are spread over the four chips."""


def set_up() -> None:
    """Has this process, which runs on a CPU, trace as for a TPU."""
    os.environ.update(VARIABLES)
    jax.config.update("jax_platforms", "cpu")
    jax.default_backend = lambda: "tpu"  # which choices in the code depend on


def compiled(case: dict[str, Any]) -> dict[str, Any]:
    """What the compiler says of the three programs of a case."""
    num_shards = case.get("shards", 1)
    sections = common.shape(**SHAPE | {name: value for name, value in case.items() if name != "shards"})
    sections["training"]["num_shards"] = num_shards
    experiment = config.parse(sections).experiment
    member, clock = experiment.member(), clock_at(experiment.training, 1)
    devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices)
    axes = {"member": devices.size // num_shards} | ({sharding.AXIS: num_shards} if num_shards > 1 else {})
    mesh = Mesh(devices.reshape(*axes.values()), (*axes,), axis_types=(AxisType.Auto,) * len(axes))
    make = build.build_shard if num_shards > 1 else build.build
    by_member, by_shard, everywhere = PartitionSpec("member"), PartitionSpec(*axes), PartitionSpec()
    spread = by_member
    if num_shards > 1:
        spread = jax.tree.map(lambda split: by_shard if split else by_member, make(member).sharded_axes)

    def placed(tree: Any, specs: Any) -> Any:
        def shaped(spec: PartitionSpec, part: Any) -> Any:
            where = NamedSharding(mesh, spec)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where), part)

        return jax.tree.map(shaped, specs, tree)

    def mapped(function: Any, in_specs: tuple, out_specs: Any, donate: tuple[int, ...] = ()) -> Any:
        over_members = jax.vmap(function, in_axes=tuple(None if spec is everywhere else 0 for spec in in_specs))
        whole = jax.shard_map(over_members, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return jax.jit(whole, donate_argnums=donate)

    count = case["members"]
    numbers = placed(jax.tree.map(lambda x: jax.ShapeDtypeStruct((count,), jnp.float32), member), by_member)
    keys = placed(jax.eval_shape(jax.vmap(jax.random.key), jnp.zeros(count, jnp.uint32)), by_member)
    clock = placed(jax.tree.map(np.asarray, clock), everywhere)
    init = mapped(lambda m, key: make(m).init(key), (by_member, by_member), spread)
    state = placed(jax.eval_shape(init, numbers, keys), spread)
    epoch = mapped(
        lambda m, key, clock, state: make(m).epoch(key, clock, state),
        (by_member, by_member, everywhere, spread),
        (spread, by_member),
        (3,),
    )
    evaluate = mapped(
        lambda m, key, clock, agent: make(m).evaluate(key, clock, agent),
        (by_member, by_member, everywhere, by_member),
        by_member,
    )
    found: dict[str, Any] = {}
    for name, program, arguments in (
        ("init", init, (numbers, keys)),
        ("epoch", epoch, (numbers, keys, clock, state)),
        ("evaluate", evaluate, (numbers, keys, clock, state.agent)),
    ):
        start = time.process_time()
        executable = program.trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
        memory, text = executable.memory_analysis(), executable.as_text()
        loops = text[: text.index("\nENTRY ")]  # computations that are not the entry
        found[name] = {
            "cpu_seconds": time.process_time() - start,
            "argument_bytes": memory.argument_size_in_bytes,
            "donated_bytes": memory.alias_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "copies_of_the_replay_in_a_loop": common.copies(loops, state.replay.rows.shape[-1] // num_shards),
            "collectives": len(re.findall(r" all-reduce(?:-start)?\(", text)),
        }
    replay = state.replay.rows
    found["replay_bytes"] = int(np.prod(replay.sharding.shard_shape(replay.shape))) * replay.dtype.itemsize
    return found


def table(result: dict[str, Any]) -> str:
    rows = [
        {
            "case": name,
            "state, MB": f"{found['epoch']['argument_bytes'] / 1e6:,.1f}",
            "donated": f"{found['epoch']['donated_bytes'] / found['epoch']['argument_bytes']:.0%}",
            "temporaries of an epoch, MB": f"{found['epoch']['temporary_bytes'] / 1e6:,.1f}",
            "of the replay": f"{found['epoch']['temporary_bytes'] / found['replay_bytes']:.2f}",
            "copies of the replay in the loop": found["epoch"]["copies_of_the_replay_in_a_loop"],
            "collectives": found["epoch"]["collectives"],
        }
        for name, found in result["cases"].items()
    ]
    return common.table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--table", action="store_true", help="compile nothing, print the table")
    options = parser.parse_args()
    path = common.RESULTS / "tpu.json"
    result = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    if not options.table:
        set_up()
        result |= {"topology": TOPOLOGY, "machine": common.facts()}
        for name, case in CASES.items():
            if options.only in name:
                result["cases"][name] = compiled(case)
                print(name, json.dumps(result["cases"][name]), file=sys.stderr, flush=True)
                common.write("tpu", result)
    print(table(result))


if __name__ == "__main__":
    main()
