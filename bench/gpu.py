"""All that is measured on an accelerator, in one command, since its time is scarce.

    python bench/gpu.py                    # on a machine with one: about 15 minutes, writes bench/results/gpu.json
    python bench/gpu.py --only learning    # one section; the results of the others are kept
    python bench/gpu.py --ahead-of-time    # without one, with the extra cuda12: kernels, compiled for an H100

Members from 1 to 4096 at three sizes, and FastTD3 with the published numbers of environments and rows, each with matrix
products in float32, in TF32 (the default there) and with agent.precision bfloat16; what is learned by each; command
buffers as XLA chooses them, off, and around whole loops; rejax's headline workload on Pendulum (128 environments, an
update for each environment step, batch 512, a million rows, up to 300 members). It has not run yet.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import common
from profile_update import kernels

from jaxddpg.config import build
from jaxddpg.config import environment as environment_module

COMMAND_BUFFERS = {
    "as XLA chooses": "",
    "off": "--xla_gpu_enable_command_buffer=",
    "loops too": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA has to know of the device to compile for it."""


def rate(shape: dict[str, Any], epochs: int, learn: bool = False) -> dict[str, Any]:
    """What one shape reaches in this process, how many fusions its epoch has, and with `learn` what was learned."""
    import jax
    import numpy as np

    from jaxddpg.types import Clock

    measured, population, state = common.measure(shape, epochs)
    found = measured | {
        "fusions": len(re.findall(r" fusion\(", population.programs["epoch"].compiled.as_text())),
        "device": jax.devices()[0].device_kind,
    }
    if learn:
        found["returns"] = population.evaluate(Clock(np.uint32(epochs + 1), np.uint32(0), 1), state.agent)()[
            "return_mean"
        ].tolist()
    return found


def plans(smoke: bool) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """By section: (what is asked of `rate` and of its process)."""
    steps = 5 if smoke else 250
    shape: dict[str, Any] = {"steps_per_epoch": steps}
    small = {**shape, "hidden": 16, "batch_size": 32, "capacity": 2_000} if smoke else shape
    counts = (1, 2) if smoke else (1, 16, 256, 4096)
    hiddens = (16,) if smoke else (256, 64, 512)  # the most important first, since the time may not suffice
    precisions: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"precision": "bfloat16"}, {}),
        ({}, {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}),
    ]
    published = {"algorithm": "fasttd3", "num_envs": 1_024, "updates_per_step": 2, "hidden": 512}
    published |= {"batch_size": 32_768, "capacity": 1_048_576}
    published |= {"num_envs": 4, "hidden": 16, "batch_size": 32, "capacity": 2_048} if smoke else {}
    headline = {"num_envs": 128, "updates_per_step": 128, "batch_size": 512, "capacity": 1_000_000}
    headline |= {"batch_size": 32, "capacity": 2_048, "hidden": 16} if smoke else {}
    learning = {**small, "members": 2 if smoke else 64, "steps_per_epoch": steps if smoke else 5_000}
    return {
        # A replay of 100,000 rows for each of 4096 members would be 15 GB: so many members have shorter ones.
        "members": [
            ({**small, "members": m, "hidden": h, "capacity": 100_000 if m < 2048 else 20_000, **own}, environment)
            for h in hiddens
            for own, environment in precisions
            for m in counts
        ],
        "FastTD3": [
            ({**published, "steps_per_epoch": 2 if smoke else 100, **own}, environment)
            for own, environment in precisions
        ],
        "command buffers": [
            ({**small, "members": m}, {"XLA_FLAGS": flags}) for flags in COMMAND_BUFFERS.values() for m in counts[:3:2]
        ],
        "learning": [({**learning, "learn": True, **own}, environment) for own, environment in precisions],
        "rejax's headline": [
            ({**headline, "members": m, "steps_per_epoch": 2 if smoke else 10}, {})
            for m in ((1,) if smoke else (1, 50, 300))
        ],
    }


TIMEOUT = 180
"""The seconds after which a measurement that hangs is given up."""
AHEAD_OF_TIME = [(1, "ddpg"), (1, "td3"), (1, "d4pg"), (1, "fasttd3"), (16, "ddpg"), (16, "td3")]


def compiled_for_h100(cases: Sequence[tuple[int, str]] = AHEAD_OF_TIME, published: bool = True) -> dict[str, Any]:
    """Kernels of one update and of one epoch, compiled for an H100 without having one, for numbers of members and
    algorithms; and the memory of an epoch with the published settings of FastTD3."""
    os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # nothing can be timed
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from jaxddpg import config
    from jaxddpg.parts import equations
    from jaxddpg.training.loop import clock_at

    jax.config.update("jax_platforms", "cpu")  # where this runs; JAX then does not ask CUDA what there is
    jax.default_backend = lambda: "gpu"  # which choices in the code depend on
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    sharding = SingleDeviceSharding(topology.devices[0])
    data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))

    def compiled(function: Any, members: int, *trees: Any) -> Any:
        lead = (members,) if members > 1 else ()
        shaped = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=sharding), trees)
        over = jax.vmap(function) if members > 1 else function
        donated = jax.jit(over, donate_argnums=len(trees) - 1)
        return donated.trace(*shaped).lower(lowering_platforms=("cuda",)).compile()

    def compiled_epoch(experiment: Any, members: int) -> tuple[Any, Any]:
        trainer, clock = build.build(experiment.member()), clock_at(experiment.training, 1)
        state = jax.eval_shape(lambda data: trainer.init(jax.random.wrap_key_data(data)), data)

        def epoch(data: Any, state: Any) -> Any:
            return trainer.epoch(jax.random.wrap_key_data(data), clock, state)

        return compiled(epoch, members, data, state), state

    def compiled_update(experiment: Any, members: int, state: Any) -> Any:
        environment = environment_module.make_environment(experiment.environment)
        agent, replay = build.make_agent(environment, experiment.agent), build.make_replay(experiment.replay)
        clock, key = clock_at(experiment.training, 1), jax.random.key(0)
        rows = jax.eval_shape(lambda memory: replay.sample(key, clock, memory, agent.batch_size), state.replay)
        batch = jax.eval_shape(lambda rows: equations.transition(rows, agent.gamma), rows)

        def update(data: Any, batch: Any, learner: Any) -> Any:
            return agent.update(jax.random.wrap_key_data(data), clock, learner, batch)

        return compiled(update, members, data, batch, state.agent)

    found = {}
    for members, algorithm in cases:
        experiment = config.parse(common.shape(steps_per_epoch=100, algorithm=algorithm)).experiment
        epoch, state = compiled_epoch(experiment, members)
        counted = kernels(compiled_update(experiment, members, state).as_text())
        found[f"{algorithm}, {members} members"] = {
            "kernels_per_update": sum(counted.values()),
            "by_kind": dict(counted.most_common()),
            "fusions_in_the_epoch": len(re.findall(r" fusion\(", epoch.as_text())),
            "copies_of_the_replay": common.copies(epoch.as_text(), state.replay.rows.size),
        }
    if not published:
        return found
    epoch, state = compiled_epoch(config.read(common.ROOT / "configs" / "fasttd3.yaml").experiment, 1)
    memory = epoch.memory_analysis()
    found["configs/fasttd3.yaml"] = {
        "state_bytes": memory.argument_size_in_bytes,
        "donated_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "copies_of_the_replay": common.copies(epoch.as_text(), state.replay.rows.size),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on any device, writes nothing")
    parser.add_argument("--only", metavar="SECTION", choices=list(plans(smoke=True)), help="measure one section")
    parser.add_argument("--ahead-of-time", action="store_true", help="count kernels for an H100 without having one")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        asked = json.loads(options.one)
        print(json.dumps(rate(asked["shape"], asked["epochs"], asked["learn"])))
        return
    if options.ahead_of_time:
        found = compiled_for_h100()
        print(json.dumps(found, indent=2))
        common.write("gpu_kernels", found | common.facts())
        return
    path = common.RESULTS / "gpu.json"
    result: dict[str, Any] = (json.loads(path.read_text()) if path.exists() else {}) | common.facts()
    for section, planned in plans(options.smoke).items():
        if options.only not in (None, section):
            continue
        result[section] = []
        for shape, environment in planned[: 1 if options.smoke else None]:
            learn = shape.pop("learn", False)
            asked = json.dumps({"shape": shape, "epochs": 1 if options.smoke else 3, "learn": learn})
            # In a process of its own: flags are read once, and what does not fit must not end the rest.
            command = [sys.executable, __file__, "--one", asked]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, env=os.environ | environment, timeout=TIMEOUT, check=True
                )
                found = json.loads(done.stdout)
            except subprocess.TimeoutExpired as error:
                found = {"failed": str(error)}
            except subprocess.CalledProcessError as error:
                found = {"failed": error.stderr.strip().split("\n")[-1]}
            result[section].append({"shape": shape, "environment": environment} | found)
            print(section, result[section][-1], flush=True)
            if options.smoke:
                assert "failed" not in found, found
            else:
                common.write("gpu", result)


if __name__ == "__main__":
    main()
