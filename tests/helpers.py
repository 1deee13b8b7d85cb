"""What several test modules share: small experiments, calls of the command, and reading what a run wrote."""

import contextlib
import io
import json
import shutil
import struct
from fractions import Fraction
from functools import partial

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jaxddpg import config
from jaxddpg.cli.main import main
from jaxddpg.config import ConfigError
from jaxddpg.runs import show

DRAW_CURVES = show.draw_curves
TINY = """
environment: {parameters: {max_steps_in_episode: 10}}
agent: {batch_size: 4, actor: {hidden_sizes: [8]}, critic: {hidden_sizes: [8]}}
replay: {capacity: 64}
training: {num_envs: 2, warmup_steps: 4, steps_per_epoch: 6, num_epochs: 1}
evaluation: {num_episodes: 2}
"""
MEMBERS, EPOCHS = 3, 2
WARMUP, STEPS, ENVS, PERIOD = 4, 4, 2, 2
RATES, SCALES, SEEDS = [1e-4, 1e-2], [0.1, 0.2, 0.4], 2
GRID = {"agent.actor_learning_rate": {"geomspace": [1e-4, 1e-2, 2]}, "noise.scale": SCALES}
slow = partial(pytest.param, marks=pytest.mark.slow)
thorough = partial(pytest.param, marks=pytest.mark.thorough)
CURVES = ("eval/return_mean", "eval/q_start_mean", "eval/discounted_return_mean")


def call(*arguments):
    """The exit code of a command, and what it wrote to standard output and standard error."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def figures():
    """Has runs draw their figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "draw_curves", DRAW_CURVES)
        yield


def refused(said, *fragments):
    """Whether the input was refused in one sentence that has all the fragments; else what was said."""
    code, out, err = said
    lines = err.splitlines()
    fine = (code, out, len(lines)) == (2, "", 1) and lines[0].startswith("error: ")
    return [] if fine and all(fragment in err for fragment in fragments) else said


def tiny(**changes):
    """An experiment with an asymmetric action Box, whose first training episodes end in the second epoch."""
    sections = {
        "environment": {
            "name": "MountainCarContinuous-v0",
            "parameters": {"min_action": -0.5, "max_action": 2.0, "max_steps_in_episode": 10},
        },
        "agent": {"batch_size": 4, "actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}},
        "replay": {"capacity": 64},
        "training": {
            "num_envs": ENVS,
            "updates_per_step": Fraction(1, PERIOD),
            "warmup_steps": WARMUP,
            "steps_per_epoch": STEPS,
            "num_epochs": EPOCHS,
        },
        "evaluation": {"num_episodes": 2},
        "population": {"seed": 7, "num_seeds": MEMBERS},
    }
    return config.parse(sections | {name: sections.get(name, {}) | value for name, value in changes.items()}).experiment


def swept(axes=GRID, **changes):
    population = {"seed": 7, "num_seeds": SEEDS, "sweep": axes} | changes.pop("population", {})
    return tiny(**changes | {"population": population})


def variants(experiment):
    """The settings of each variant."""
    return [variant.settings for run in config.resolve(experiment).runs for variant in run.variants]


def swept_values(experiment):
    """The values of the swept settings of each variant."""
    return [variant.swept for run in config.resolve(experiment).runs for variant in run.variants]


def programs(experiment):
    """The experiment of each run, by the name of its directory."""
    return {run.name: run.experiment for run in config.resolve(experiment).runs}


def lines(directory):
    written = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in written]


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text(), parse_constant=pytest.fail)


def comparable(directory):
    """What must be equal: all but the time it took."""
    timed = ("wall_seconds", "perf/")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in lines(directory)]


def after(epochs):
    """A question that is answered with yes after so many epochs, the start among them."""
    asked = iter(range(epochs - 1))
    return lambda: next(asked, None) is None


def needs_library(name):
    """Skips a test where the library of an environment is not installed."""
    library = {"brax": "brax", "playground": "mujoco_playground"}.get(name.partition(":")[0])
    if library:
        pytest.importorskip(library)


def equal(result, other):
    jax.tree.map(np.testing.assert_array_equal, result.agents, other.agents)


def events(folder):
    """(tag, step) -> value of all TensorBoard events of a folder; each stands between its length and checksums."""
    values = {}
    for path in folder.glob("*tfevents*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return values


def flip_a_byte(path):
    file = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_a_file(path):
    file = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def empty_it(path):
    shutil.rmtree(path)
    path.mkdir()


def faults(content, overrides=None):
    with pytest.raises(ConfigError) as error:
        config.parse(content, overrides)
    return error.value.errors


def reread(experiment, tmp_path):
    path = tmp_path / "dumped.yaml"
    path.write_text(config.dump(experiment))
    return config.read(path).experiment
