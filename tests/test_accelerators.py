"""What compilers of accelerators make of an epoch, without an accelerator; skipped where they are not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
TPU = """
import json, sys
import tpu
tpu.set_up()
print(json.dumps(tpu.compiled(json.loads(sys.argv[1]))))
"""
CUDA = """
import json, sys
import gpu
print(json.dumps(gpu.compiled_for_h100([json.loads(sys.argv[1])], published=False)))
"""


def printed(program, argument):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCH), *sys.path])}
    environment.pop("XLA_FLAGS", None)
    command = f"ulimit -s unlimited; exec {sys.executable} -c '{program}' '{json.dumps(argument)}'"
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "members"), [("ddpg", 8), ("td3", 2)])
def test_a_tpu_updates_the_replay_in_place(algorithm, members):
    """Several members of a chip, whose replays do not fit its vector memory. With eight its compiler would round all of
    them for a sample that is only multiplied."""
    pytest.importorskip("libtpu")
    found = printed(TPU, {"algorithm": algorithm, "members": 4 * members})
    epoch, replay_bytes = found["epoch"], found["replay_bytes"]
    assert replay_bytes == members * 1_000_000 * 9 * 4
    assert epoch["donated_bytes"] > replay_bytes
    assert epoch["temporary_bytes"] < 0.2 * replay_bytes
    assert epoch["copies_of_the_replay_in_a_loop"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 16])
def test_cuda_updates_the_replay_in_place(members):
    pytest.importorskip("jax_cuda12_plugin")
    (found,) = printed(CUDA, [members, "td3"]).values()
    assert found["copies_of_the_replay"] == 0
    assert found["kernels_per_update"] < 100
