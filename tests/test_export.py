"""Policies that are used without jaxddpg."""

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import call

from jaxddpg import config
from jaxddpg.config import ConfigError
from jaxddpg.runs.export import export
from jaxddpg.runs.load import load_policy
from jaxddpg.runs.start import run

SIZES = {
    "environment": {"name": "Pendulum-v1"},
    "replay": {"capacity": 400},
    "training": {"num_envs": 2, "warmup_steps": 16, "steps_per_epoch": 30, "num_epochs": 2},
    "evaluation": {"num_episodes": 1},
    "population": {"num_seeds": 2},
}
OFFSET = {
    "environment": {"name": "probes:offset_observation", "parameters": {"offset": 1e4}},
    "training": SIZES["training"] | {"updates_per_step": 20},  # so that running averages come near
}


def deep(algorithm="ddpg", **actor):
    network = {"hidden_sizes": [8, 8], "final_bound": 0.3}
    return {"algorithm": algorithm, "batch_size": 16, "actor": network | actor, "critic": network}


CASES = {
    "ddpg": {"agent": deep()},
    "two actions": {"environment": {"name": "probes:boxed"}, "agent": deep()},
    "layer": {"agent": deep(normalization="layer")},
    "batch": {"agent": deep(normalization="batch")},
    "batch, offset": OFFSET | {"agent": deep(normalization="batch")},
    "normalized, offset": OFFSET | {"agent": deep() | {"normalize_observations": True}},
    "residual": {"agent": deep("td3", architecture="residual", hidden_sizes=[4, 4])},
    "d4pg": {"agent": deep("d4pg")},
    "bfloat16": {"agent": deep("td3", hidden_sizes=[8, 8, 8]) | {"precision": "bfloat16"}},
    "residual, bfloat16": {"agent": deep("td3", architecture="residual", hidden_sizes=[4]) | {"precision": "bfloat16"}},
    "copdac": {
        "agent": {"algorithm": "copdac", "batch_size": 2, "features": {"encoding": "radial", "num_centers": 2}},
        "replay": {"sampling": "latest", "capacity": 400},
    },
}

IN_JAX = """
import sys
from pathlib import Path
import jax
import numpy as np
policy = jax.export.deserialize(bytearray(Path("policy.stablehlo").read_bytes()))
given = np.load("../given.npy")
whole = jax.jit(policy.call)(given)
parts = [policy.call(given[:1]), policy.call(given[1:8]), policy.call(given[8:])]
assert not {"jaxddpg", "flax"} & {*sys.modules}
np.save("../found.npy", [whole, np.concatenate(parts)])
"""
IN_NUMPY = """
import sys
import numpy as np
from numpy_policy import load
given, act = np.load("../given.npy"), load("policy.npz")
assert not {"jaxddpg", "flax", "jax"} & {*sys.modules}
assert act(given).dtype == np.float32
np.save("../found.npy", [act(given), np.stack([act(row) for row in given])])
"""


@cache
def trained(case, root):
    """The directory of a short run."""
    directory = Path(root) / re.sub(r"\W+", "_", case)
    run(config.parse(SIZES | CASES[case]).experiment, directory)
    return directory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.mark.parametrize("case", CASES)
def test_an_exported_policy_is_that_of_the_run_without_this_package(case, root, tmp_path):
    directory = trained(case, root)
    export(directory, tmp_path / "policy", member=1)
    policy = load_policy(directory, member=1)
    offset = 1e4 if "offset" in case else 0.0
    size = 1 if "offset" in case else 3
    given = np.random.default_rng(0).normal(size=(708, size)).astype(np.float32)
    given[-8:] *= 1e3  # which normalized observations are clipped at
    given += np.float32(offset)
    np.save(tmp_path / "given.npy", given)
    expected = np.asarray(policy(given))
    assert np.ptp(expected) > (1e-5 if case == "copdac" else 1e-2)
    kinds = {"jax": IN_JAX} if case == "copdac" else {"jax": IN_JAX, "numpy": IN_NUMPY}
    assert (tmp_path / "policy" / "policy.npz").exists() == ("numpy" in kinds)
    for program in kinds.values():
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "policy", check=True)
        for found in np.load(tmp_path / "found.npy"):
            # A factor within an ulp of the midpoint of two bfloat16s may be rounded to either.
            error = np.abs(found - expected)
            assert np.max(error) < (1e-2 if "bfloat16" in case else 2e-6)
            assert np.mean(error < 2e-6) > 0.99
    text = (tmp_path / "policy" / "README.md").read_text()
    assert ("## In NumPy" in text) == ("numpy" in kinds)
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "policy", check=True)


def test_it_is_lowered_for_every_platform_and_any_batch(root, tmp_path):
    export(trained("ddpg", root), tmp_path)
    found = jax.export.deserialize(bytearray((tmp_path / "policy.stablehlo").read_bytes()))
    assert {*found.platforms} == {"cpu", "cuda", "rocm", "tpu"}
    assert [str(aval) for aval in (*found.in_avals, *found.out_avals)] == ["float32[batch,3]", "float32[batch,1]"]


def test_the_command_writes_into_the_run_and_again(root):
    directory = trained("ddpg", root)
    for _ in range(2):
        assert call("export", directory, "--epoch", "best") == (0, f"{directory}/policy/README.md\n", "")
    assert f"Member 0 of `{directory}`, trained by ddpg on Pendulum-v1" in (directory / "policy/README.md").read_text()
    assert call("evaluate", directory, "--num-episodes", "1")[0] == 0


def test_what_an_earlier_export_left_is_removed(root, tmp_path):
    export(trained("ddpg", root), tmp_path)
    export(trained("copdac", root), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.stablehlo", "README.md"}


def test_other_files_and_members_are_refused(root, tmp_path, monkeypatch):
    directory = trained("ddpg", root)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"contains notes.txt, which is not part of an exported policy; choose"):
        export(directory, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("# Mine")
    with pytest.raises(ConfigError, match=r"other has a README.md of something else; choose another directory"):
        export(directory, tmp_path / "other")
    assert (tmp_path / "other" / "README.md").read_text() == "# Mine"
    with pytest.raises(ConfigError, match=r"notes.txt is a file; name a directory"):
        export(directory, tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"cannot be written: Not a directory"):
        export(directory, tmp_path / "notes.txt" / "policy")
    with pytest.raises(ConfigError, match=r"member is 2, but must be at least 0 and below 2"):
        export(directory, tmp_path / "new", member=2)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "other"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package flatbuffers: pip install flatbuffers"):
        export(directory, tmp_path / "new")
