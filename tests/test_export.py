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
from jaxddpg.runs import export as export_module
from jaxddpg.runs import numpy_policy
from jaxddpg.runs.export import export
from jaxddpg.runs.load import load_policy
from jaxddpg.runs.start import run, sweep

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
    "fasttd3": {"agent": deep("fasttd3")},
    "bfloat16": {"agent": deep("td3", hidden_sizes=[8, 8, 8]) | {"precision": "bfloat16"}},
    "residual, bfloat16": {"agent": deep("td3", architecture="residual", hidden_sizes=[4]) | {"precision": "bfloat16"}},
    "copdac": {
        "agent": {"algorithm": "copdac", "batch_size": 2, "features": {"encoding": "radial", "num_centers": 2}},
        "replay": {"sampling": "latest", "capacity": 400},
    },
}

FORMS = {
    "jax": """
from pathlib import Path
import jax
act = jax.export.deserialize(bytearray(Path("policy.stablehlo").read_bytes())).call
assert not {"jaxddpg", "flax"} & {*sys.modules}
""",
    "numpy": """
from numpy_policy import load
act = load("policy.npz")
assert act(given).dtype == np.float32
assert not {"jaxddpg", "flax", "jax"} & {*sys.modules}
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession("policy.onnx")
act = lambda rows: session.run(["action"], {"observation": rows})[0]
assert not {"jaxddpg", "flax", "jax"} & {*sys.modules}
""",
}
"""Programs that load a policy in one of its forms."""
PROGRAM = """
import sys
import numpy as np
given = np.load("../given.npy")
{form}
parts = [act(rows) for rows in np.split(given, [1, 8], axis=-2)]
np.save("../found.npy", [act(given), np.concatenate(parts, axis=-2)])
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


def observations(case):
    """[708, O], some of them so large that normalized observations are clipped."""
    given = np.random.default_rng(0).normal(size=(708, 1 if "offset" in case else 3)).astype(np.float32)
    given[-8:] *= 1e3
    return given + np.float32(1e4 if "offset" in case else 0.0)


def forms(case):
    return ["jax"] if case == "copdac" else [*FORMS]


def check(case, directory, given, expected):
    """Compares what a policy returns in each form, in a process of its own, in one batch and in several."""
    np.save(directory.parent / "given.npy", given)
    for form in forms(case):
        program = PROGRAM.format(form=FORMS[form])
        subprocess.run([sys.executable, "-c", program], cwd=directory, check=True)
        for found in np.load(directory.parent / "found.npy"):
            # A factor within an ulp of the midpoint of two bfloat16s may be rounded to either.
            error = np.abs(found - expected)
            assert np.max(error) < (1e-2 if "bfloat16" in case else 2e-6)
            assert np.mean(error < 2e-6) > 0.99


def run_readme(case, directory):
    """Runs the programs in a README."""
    programs = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert len(programs) == len(forms(case))
    for program in programs:
        subprocess.run([sys.executable, "-c", program], cwd=directory, check=True)


@pytest.mark.parametrize("case", CASES)
def test_an_exported_policy_is_that_of_the_run_without_this_package(case, root, tmp_path):
    directory, given = trained(case, root), observations(case)
    export(directory, tmp_path / "policy", member=1)
    expected = np.asarray(load_policy(directory, member=1)(given))
    assert np.ptp(expected) > (1e-5 if case == "copdac" else 1e-2)
    check(case, tmp_path / "policy", given, expected)
    assert ("bfloat16 in hidden layers" in (tmp_path / "policy" / "README.md").read_text()) == ("bfloat16" in case)
    if case in ("two actions", "copdac"):
        run_readme(case, tmp_path / "policy")


@pytest.mark.parametrize("case", ["batch, offset", "layer", "normalized, offset", "residual, bfloat16", "copdac"])
def test_the_policies_of_all_members_are_exported_as_one(case, root, tmp_path):
    directory, rows = trained(case, root), observations(case)
    assert call("export", directory, "--member", "all", "--output", tmp_path / "policy")[0] == 0
    given = np.stack([rows, rows[::-1]])  # of each member its own
    expected = np.stack([load_policy(directory, member)(given[member]) for member in range(2)])
    assert np.max(np.abs(expected[0] - expected[1, ::-1])) > 1e-5
    check(case, tmp_path / "policy", given, expected)
    if case in ("layer", "copdac"):
        run_readme(case, tmp_path / "policy")


def test_all_members_have_boxes_of_their_own(tmp_path):
    axis = {"environment.parameters.max_torque": [1.0, 2.0]}
    members = {"population": {"num_seeds": 1, "sweep": axis}}
    sweep(config.parse(SIZES | CASES["ddpg"] | members).experiment, tmp_path / "runs")
    export(tmp_path / "runs", tmp_path / "policy", "all")
    given = np.full((2, 1, 3), 1e4, np.float32)
    expected = np.stack([load_policy(tmp_path / "runs", member)(given[member]) for member in range(2)])
    assert np.all(np.abs(expected).ravel() == [1, 2])
    compiled = jax.export.deserialize(bytearray((tmp_path / "policy" / "policy.stablehlo").read_bytes()))
    np.testing.assert_array_equal(compiled.call(given), expected)
    act = numpy_policy.load(tmp_path / "policy" / "policy.npz")
    np.testing.assert_array_equal(act(given), expected)
    text = (tmp_path / "policy" / "README.md").read_text()
    assert text.startswith("# A policy for Pendulum-v1\n\nTrained by ddpg on Pendulum-v1, in ")
    assert "| 0 | 0 | 1.0 | 2 | no |\n| 1 | 0 | 2.0 | 2 | no |\n" in text
    assert (
        "| member | action | low | high |\n| --- | --- | --- | --- |\n| 0 | 0 | -1.0 | 1.0 |\n| 1 | 0 | -2.0 |" in text
    )
    export(tmp_path / "runs", tmp_path / "one", np.int64(1))
    text = (tmp_path / "one" / "README.md").read_text()
    assert "| 1 | 0 | 2.0 | 2 | no |\n\n" in text
    assert "| action | low | high |\n| --- | --- | --- |\n| 0 | -2.0 | 2.0 |" in text
    for wrong in (given[0], given[:1], given[..., :2], given[0, 0], given[None]):
        with pytest.raises(ValueError, match=r"observation has shape .*, but must be \[2, batch, 3\]"):
            act(wrong)


def test_numpy_takes_any_leading_axes_and_refuses_other_sizes(root, tmp_path):
    export(trained("ddpg", root), tmp_path)
    act, given = numpy_policy.load(tmp_path / "policy.npz"), observations("ddpg")
    expected = act(given)
    np.testing.assert_allclose(np.stack([act(row) for row in given]), expected, atol=2e-6)
    np.testing.assert_allclose(act(given.reshape(2, 6, 59, 3)), expected.reshape(2, 6, 59, 1), atol=2e-6)
    with pytest.raises(ValueError, match=r"observation has shape \(7, 2\), but must be \[..., 3\]"):
        act(np.zeros((7, 2)))


def test_it_is_lowered_for_every_platform_and_any_batch(root, tmp_path):
    export(trained("ddpg", root), tmp_path)
    found = jax.export.deserialize(bytearray((tmp_path / "policy.stablehlo").read_bytes()))
    assert {*found.platforms} == {"cpu", "cuda", "rocm", "tpu"}
    assert [str(aval) for aval in (*found.in_avals, *found.out_avals)] == ["float32[batch,3]", "float32[batch,1]"]


def test_the_command_writes_into_the_run_and_again(root):
    directory = trained("ddpg", root)
    for _ in range(2):
        assert call("export", directory, "--epoch", "best") == (0, f"{directory}/policy/README.md\n", "")
    text = (directory / "policy/README.md").read_text()
    assert f"Trained by ddpg on Pendulum-v1, in `{directory}`:\n\n| member | seed | epoch | diverged |" in text
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
    assert "member is -1, but must be at least 0" in call("export", directory, "--member", "-1")[2]
    with pytest.raises(ConfigError, match=r"member is every, but must be a member index or all"):
        export(directory, tmp_path / "new", member="every")
    for wrong in (True, 1.0, None):
        with pytest.raises(ConfigError, match=r"member is .*, but must be a member index$"):
            export(directory, tmp_path / "new", member=wrong)
    (tmp_path / "odd" / "README.md").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"odd contains README.md, which is not part of an exported policy"):
        export(directory, tmp_path / "odd")
    (tmp_path / "odd" / "README.md").rmdir()
    (tmp_path / "odd" / ".hidden").touch()
    export(directory, tmp_path / "odd")
    monkeypatch.setattr(export_module, "MAX_ONNX", 10)
    with pytest.raises(ConfigError, match=r"the networks have 0.0 GB, but .* at most 0.0 GB; export single members"):
        export(directory, tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ConfigError, match=r"exporting requires onnx: pip install onnx"):
        export(directory, tmp_path / "new")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"requires flatbuffers and onnx: pip install flatbuffers onnx"):
        export(directory, tmp_path / "new")
