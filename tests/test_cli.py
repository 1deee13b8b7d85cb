import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from helpers import TINY, call, figures, refused

from jaxddpg import ConfigError, config, load_policy, settings
from jaxddpg.cli.main import main
from jaxddpg.cli.signals import Signals
from jaxddpg.report import console, rows
from jaxddpg.report.curves import by_epoch
from jaxddpg.runs import load as load_module
from jaxddpg.runs import show as show_module

HERE = Path(__file__).parent


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A small experiment's file, in a directory of its own that is the current one."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The directory of a finished run, and what the command said."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "tiny.yaml").write_text(TINY)
    run = directory / "new" / "run"
    with figures():
        said = call("train", directory / "tiny.yaml", "--num-seeds", "2", "--seed", "5", "--run-dir", run)
    return run, said


@pytest.fixture(scope="session")
def diverged(tmp_path_factory):
    """The same of a quiet run without a directory of its own choice, whose steps are far too long; its program is that
    of the other run."""
    directory = tmp_path_factory.mktemp("diverged")
    (directory / "tiny.yaml").write_text(TINY)
    rates = ["--agent.critic_learning_rate=1e38", "--agent.actor-learning-rate", "1e38"]
    with contextlib.chdir(directory):
        said = call("train", "tiny.yaml", "--quiet", "--num-seeds", "2", *rates)
    (run,) = (directory / "runs").iterdir()
    return run, said


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ("--agent.gama 0.9", ["agent.gama is not a setting", "did you mean agent.gamma?"]),
        ("--foo.bar 1", ["foo is not a setting", "an experiment has environment, agent"]),
        ("--agent.batch_size many", ["agent.batch_size is many", "must be an integer", "default 256"]),
        ("--agent.batch_size 4.5", ["agent.batch_size is 4.5", "must be an integer"]),
        ("--agent.gamma 1.1", ["agent.gamma is 1.1", "at least 0 and at most 1", "default 0.99"]),
        ("--agent.gamma nan", ["agent.gamma is nan", "must be a number"]),
        ("--agent.tau 0", ["agent.tau is 0", "greater than 0 and at most 1", "default 0.005"]),
        ("--agent.tau 2", ["agent.tau is 2", "greater than 0 and at most 1"]),
        ("--agent.actor_learning_rate -1e-3", ["agent.actor_learning_rate is -0.001", "greater than 0"]),
        ("--agent.critic_learning_rate=-1", ["agent.critic_learning_rate is -1", "greater than 0"]),
        (
            "--agent.batch_size 65 --training.warmup_steps 40",
            ["agent.batch_size is 65", "at most replay.capacity, 64"],
        ),
        (
            "--agent.batch_size 9",
            ["training.warmup_steps is 4", "fills 8 rows", "agent.batch_size, 9", "use at least 5 steps"],
        ),
        ("--training.updates_per_step 1/4", ["training.steps_per_epoch is 6", "multiple of the 4 steps", "use 8"]),
        ("--training.updates_per_step 0.25", ["training.steps_per_epoch is 6", "multiple of the 4 steps", "use 8"]),
        ("--training.updates_per_step 0", ["training.updates_per_step is 0", "greater than 0"]),
        ("--training.updates_per_step -1", ["training.updates_per_step is -1", "greater than 0"]),
        ("--training.updates_per_step 1.5", ["updates_per_step is 1.5", "a whole number k, or 1/k"]),
        ("--training.updates_per_step 0.3", ["updates_per_step is 0.3", "a whole number k, or 1/k"]),
        ("--training.updates_per_step 1/0", ["updates_per_step is 1/0", "a whole number k, or 1/k"]),
        ("--replay.capacity 63", ["replay.capacity is 63", "multiple of training.num_envs, 2", "use 64"]),
        ("--training.num_envs 0", ["training.num_envs is 0", "at least 1"]),
        ("--training.num_epochs 1e9", ["training.num_epochs is 1000000000", "fewer than 2^32", "training.num_envs"]),
        ("--agent.actor.hidden_sizes []", ["agent.actor.hidden_sizes is []", "such as [64, 64]"]),
        ("--agent.critic.hidden_sizes 64", ["agent.critic.hidden_sizes is 64", "such as [64, 64]"]),
        ("--agent.critic.hidden_sizes [8,0]", ["agent.critic.hidden_sizes is [8, 0]", "at least 1"]),
        ("--agent.critic.action_layer 1", ["agent.critic.action_layer is 1", "only 1 hidden layer", "use 0"]),
        ("--agent.actor.normalization bach", ["is bach", "one of none, layer, batch"]),
        (
            "--agent.actor 3",
            ["agent.actor must be a section", "not 3; name its settings, such as agent.actor.hidden_sizes"],
        ),
        ("--agent copdac", ["not copdac; use --agent '{algorithm: copdac}'"]),
        ("--environment Pendulum-v1", ["not Pendulum-v1; use --environment '{name: Pendulum-v1}'"]),
        ("--noise.smoothing 1 --noise.scale_of stationary", ["noise.smoothing is 1", "noise.scale_of: innovation"]),
        (
            "--environment.name Pendulum",
            ["environment.name is Pendulum", "did you mean Pendulum-v1 or Pendulum-silver?"],
        ),
        ("--environment.name CartPole-v1", ["CartPole-v1", "discrete actions", "try Pendulum-v1"]),
        (
            "--environment.parameters.gg 5",
            ["environment.parameters.gg is not a parameter", "did you mean environment.parameters.g?"],
        ),
        ("--population.seed yes", ["population.seed is true", "must be an integer"]),
        ("--seed -1", ["population.seed is -1", "at least 0"]),
        ("--seed 4294967296", ["population.seed is 4294967296", "below 2^31"]),
        ("--num-seeds 0", ["population.num_seeds is 0", "at least 1"]),
        ("--num-seeds two", ["population.num_seeds is two", "must be an integer"]),
        ("--agent.gamma", ["--agent.gamma", "value"]),
        ("--frobnicate", ["unknown option --frobnicate; see jaxddpg train --help"]),
        ("another.yaml", ["unknown argument another.yaml; see jaxddpg train --help"]),
        ("--tau 0.1", ["unknown option --tau; did you mean --agent.tau?"]),
        ("--tau -1e-3", ["unknown option --tau; did you mean --agent.tau?"]),
        ("--tau=0.1", ["unknown option --tau=0.1; did you mean --agent.tau=0.1?"]),
        ("--num_epochs 4", ["unknown option --num_epochs; did you mean --training.num_epochs?"]),
        ("--num_seeds 4", ["unknown option --num_seeds; did you mean --num-seeds?"]),
        ("--num-seed 4", ["unknown option --num-seed; did you mean --num-seeds?"]),
        ("--hidden_sizes 4", ["did you mean --agent.actor.hidden_sizes or --agent.critic.hidden_sizes"]),
        ("-agent.tau 4", ["unknown option -agent.tau; did you mean --agent.tau?"]),
        ("agent.tau=0.1", ["unknown argument agent.tau=0.1; did you mean --agent.tau=0.1?"]),
        ("agent.tau", ["unknown argument agent.tau; did you mean --agent.tau?"]),
        ("agent.tua=0.1", ["unknown argument agent.tua=0.1; did you mean --agent.tau=0.1?"]),
        ("--agent tau=0.1", ["agent must be a section", "not tau=0.1; did you mean --agent.tau 0.1?"]),
        ("--agent", ["--agent needs a value"]),
        ("--num-seeds 3 --population.num_seeds 4", ["--num-seeds is 3, but --population.num_seeds is 4; use one"]),
        ("--seed 3 --population.seed 4", ["--seed is 3, but --population.seed is 4; use one"]),
    ],
)
def test_bad_flags_are_refused(flags, fragments, tiny):
    assert refused(call("train", tiny, "--print-config", *flags.split()), *fragments) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("evaluate run --tau 1", "error: unknown option --tau; see jaxddpg evaluate --help"),
        ("evaluate run --num-episode 1", "error: unknown option --num-episode; did you mean --num-episodes?"),
        ("evaluate run --noise 1", "error: --noise is only accepted by `jaxddpg train`, `sweep` and `resume`"),
        ("resume run --tau 1", "error: unknown option --tau; did you mean --agent.tau?"),
        ("plot run --ouput 1", "error: unknown option --ouput; did you mean --output?"),
        ("--frobnicate check", "error: unknown option --frobnicate; see jaxddpg --help"),
    ],
)
def test_an_unknown_option_is_answered_with_those_of_its_command(arguments, sentence):
    assert call(*arguments.split()) == (2, "", f"{sentence}\n")


def remedies(sentence):
    """The flags that an error proposes, each by itself; a number alone is for the setting that the error is about."""
    subject = sentence.removeprefix("error: ").partition(" is ")[0]
    sections = re.findall(r"(--[a-z_.]+) '(.+)'$", sentence)
    settings = re.findall(r"(?:use|or|name) ([a-z_]+\.[a-z_]+): (\w+)", sentence)
    values = re.findall(r"use (?:at least |combine: )?(\d+|random)\b", sentence)
    return [
        *sections,
        *((f"--{name}", value) for name, value in settings),
        *((f"--{subject}", value) for value in values),
    ]


@pytest.mark.parametrize(
    ("command", "flags", "number"),
    [
        ("train", {"--agent.algorithm": "copdac"}, 1),
        ("train", {"--agent": "{tau: 0.1}", "--agent.algorithm": "copdac"}, 1),
        ("train", {"--agent": "{algorithm: copdac, features: {num_tiles: 3, encoding: fourier}}"}, 1),
        (
            "train",
            {
                "--population.selection": "{method: halving, share: 0.5}",
                "--training.num_epochs": "9",
                "--num-seeds": "9",
            },
            1,
        ),
        ("train", {"--agent": "copdac"}, 1),
        ("train", {"--noise": "pink"}, 1),
        ("train", {"--environment": "Swimmer-misc"}, 1),
        ("train", {"--agent.critic.action_layer": "1"}, 1),
        ("train", {"--agent.batch_size": "9"}, 1),
        ("train", {"--agent.microbatch_size": "2", "--agent.actor.normalization": "batch"}, 1),
        ("train", {"--agent.microbatch_size": "3"}, 1),
        ("train", {"--agent.batch_size": "5", "--training.num_shards": "2", "--training.warmup_steps": "9"}, 1),
        ("train", {"--training.num_envs": "3", "--training.num_shards": "2", "--replay.capacity": "60"}, 1),
        ("train", {"--training.num_envs": "8", "--replay.sampling": "latest"}, 2),
        ("train", {"--training.updates_per_step": "1/4"}, 1),
        ("train", {"--replay.capacity": "63"}, 1),
        ("train", {"--noise.smoothing": "1", "--noise.scale_of": "stationary"}, 1),
        ("sweep", {"--population.combine": "grid", "--population.sweep.noise.scale": "{uniform: [0.1, 0.2]}"}, 1),
    ],
)
def test_what_an_error_proposes_is_accepted(command, flags, number, tiny):
    code, _, err = call(command, tiny, "--print-config", *(word for flag in flags.items() for word in flag))
    found = dict.fromkeys(remedy for line in err.splitlines() for remedy in remedies(line))
    assert (code, len(found)) == (2, number), err
    for flag, value in found:
        kept = {name: given for name, given in flags.items() if not name.startswith(flag)}
        changed = [word for pair in (kept | {flag: value}).items() for word in pair]
        code, _, err = call(command, tiny, "--print-config", *changed)
        assert (code, err) == (0, ""), changed


def test_a_flag_does_not_take_the_next_flag_for_its_value(tiny):
    assert refused(call("train", tiny, "--agent.gamma", "--print-config"), "--agent.gamma", "value") == []


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("agent: {gamma: [", ["bad.yaml is not valid YAML", "line 1"]),
        ("agent:\n\tgamma: 1", ["bad.yaml is not valid YAML", "line 2"]),
        ("agent: 3", ["agent must be a section", "not 3"]),
        ("- agent", ["bad.yaml must be a mapping of sections such as `agent:`"]),
        ("population: {seed: yes}", ["population.seed is true", "must be an integer"]),
        ("agent: {tau: '1e1'}", ["agent.tau is", "at most 1"]),
        ("environment: {parameters: 5}", ["environment.parameters is 5", "must be a mapping {name: value, ...}"]),
        ("reporting: {wandb: 1}", ["reporting.wandb is 1", "true or false"]),
        ("7: seven", ["7 is not a setting"]),
    ],
)
def test_a_bad_file_is_refused(text, fragments, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    assert refused(call("train", tmp_path / "bad.yaml", "--print-config"), *fragments) == []


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused(call("train", tmp_path / "bad.yaml"), "bad.yaml is not valid YAML") == []


def test_a_missing_file_is_answered_with_those_there_are(tiny):
    assert (
        refused(call("train", tiny.parent / "tinny.yaml"), "tinny.yaml does not exist", f"did you mean {tiny}?") == []
    )


def test_a_hidden_file_is_no_suggestion(tiny):
    (tiny.parent / ".nope.yaml").write_text("")
    sentence = "error: nope.yaml does not exist; name a YAML file, such as configs/pendulum.yaml\n"
    assert call("train", "nope.yaml") == (2, "", sentence)


@pytest.mark.parametrize("command", ["train", "sweep", "resume", "evaluate", "plot", "report", "render", "export"])
def test_an_empty_path_is_refused(command):
    """As of a shell variable that is not set."""
    assert refused(call(command, ""), "the path is empty", f"see jaxddpg {command} --help") == []


def test_a_missing_folder_is_refused(tmp_path):
    assert refused(call("train", tmp_path / "no" / "a.yaml"), "a.yaml does not exist") == []


def test_a_directory_as_config_is_refused(tmp_path):
    assert refused(call("train", tmp_path), f"{tmp_path} is a directory", "name a YAML file in it") == []


def test_all_faults_are_told_each_on_its_line(tiny):
    code, _, err = call("train", tiny, "--agent.gamma", "2", "--agent.tau=0", "--training.num-envs", "0")
    assert code == 2
    assert [line.split()[1] for line in err.splitlines()] == ["agent.gamma", "agent.tau", "training.num_envs"]


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["train"], ["evaluate"], ["plot"]], ids=str)
def test_an_incomplete_command_is_refused(arguments):
    assert refused(call(*arguments), "see jaxddpg", "--help") == []


@pytest.mark.parametrize("command", ["evaluate", "plot"])
@pytest.mark.parametrize("place", [".", "nowhere", "tiny.yaml"])
def test_what_is_no_run_is_refused(command, place, tiny):
    why = "there is no such directory" if place == "nowhere" else "there is no config.yaml in it"
    assert refused(call(command, place), f"{place} is not a run directory: {why}") == []


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--num-episodes", "0"], ["--num-episodes is 0", "at least 1"]),
        (["--num-episodes", "few"], ["--num-episodes", "few"]),
        (["--seed", "-1"], ["--seed is -1", "at least 0"]),
        (["--seed", "4294967296"], ["--seed is 4294967296"]),
        (["--epoch", "7"], ["epoch is 7, but must be one of newest, best, 1"]),
        (["--agent.gamma", "0.5"], ["--agent.gamma is only accepted by `jaxddpg train`"]),
    ],
)
def test_a_bad_evaluation_is_refused(arguments, fragments, trained):
    assert refused(call("evaluate", trained[0], *arguments), *fragments) == []


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("/proc/none/run", " another"),
        ("tiny.yaml", "is a file; name a directory"),
        ("tiny.yaml/run", "tiny.yaml is a file; choose another directory"),
    ],
)
def test_a_run_directory_that_cannot_be_written_is_refused(place, remedy, tiny):
    assert refused(call("train", tiny, "--quiet", "--run-dir", place), f"error: {place} ", remedy) == []


def test_a_run_directory_in_use_is_refused_and_left_alone(trained, tiny):
    before = {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")}
    said = call("train", tiny, "--quiet", "--run-dir", trained[0])
    assert refused(said, f"error: {trained[0]} already contains a run", "choose another directory") == []
    assert {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")} == before


@pytest.mark.parametrize(
    ("environment", "fragments"),
    [
        ("{parameters: {max_torque: -1}}", ["Pendulum-v1", "reversed action Box", "low [1.]", "must be below high"]),
        ("{parameters: {max_steps_in_episode: 0}}", ["Pendulum-v1", "episode_length 0", "at least 1"]),
        ("{parameters: {max_steps_in_episode: -5}}", ["Pendulum-v1", "episode_length -5", "at least 1"]),
        ("{parameters: {max_torque: .inf}}", ["Pendulum-v1", "unbounded action Box", "needs finite bounds"]),
        ("{name: 'test_from_gymnax:boundless'}", ["unbounded action Box", "needs finite bounds"]),
        ("{name: 'test_from_gymnax:discrete'}", ["needs a continuous Box"]),
        (
            "{name: 'test_from_gymnax:absent'}",
            ["test_from_gymnax:absent", "there is no function absent in", "; the module has "],
        ),
        ("{name: 'test_from_gymnax:boundles'}", ["; did you mean boundless?"]),
        ("{name: 'absent_module:make'}", ["absent_module:make", "there is no module absent_module; "]),
        ("{name: 'tests/test_cli.py:make'}", ["tests/test_cli.py is a path", "use tests.test_cli:make"]),
        ("{name: ':make'}", ["a function is named as package.module:factory"]),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_and_leaves_nothing(environment, fragments, tiny, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    tiny.write_text(TINY.replace("{parameters: {max_steps_in_episode: 10}}", environment))
    assert refused(call("train", tiny, "--quiet", "--run-dir", "run"), *fragments) == []
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        (["--agent.tau", "0.5"], {"agent": {"tau": 0.5}}),
        (["--agent.tau=1e-2"], {"agent": {"tau": 0.01}}),
        (["--agent.actor-learning-rate", "0.5"], {"agent": {"actor_learning_rate": 0.5}}),
        (["--agent.actor_learning_rate", "0.5"], {"agent": {"actor_learning_rate": 0.5}}),
        (["--agent.actor.hidden-sizes", "[4, 2]"], {"agent": {"actor": {"hidden_sizes": [4, 2]}}}),
        (["--environment.parameters.g", "5"], {"environment": {"parameters": {"g": 5.0}}}),
        (["--environment.parameters.g=-5"], {"environment": {"parameters": {"g": -5.0}}}),
        (["--training.updates-per-step", "1/3"], {"training": {"updates_per_step": "1/3"}}),
        (["--reporting.tensorboard", "true"], {"reporting": {"tensorboard": True}}),
        (["--num-seeds", "3"], {"population": {"num_seeds": 3}}),
        (["--seed=3"], {"population": {"seed": 3}}),
        (["--noise", "{scale: 0.3}"], {"noise": {"scale": 0.3}}),
        (["--noise.scale=0.4", "--noise={smoothing: 0.3, scale: 0.3}"], {"noise": {"smoothing": 0.3, "scale": 0.4}}),
        (["--agent.tau", "0.5", "--agent.tau", "0.25"], {"agent": {"tau": 0.25}}),
        (["--agent.learning_rate_decay_steps", "inf"], {}),
    ],
)
def test_a_flag_changes_its_setting_and_nothing_else(flags, change, tiny):
    def merged(below, above):
        return below | {
            name: merged(below.get(name, {}), value) if isinstance(value, dict) else value
            for name, value in above.items()
        }

    _, shown, _ = call("train", tiny, "--print-config", *flags)
    assert yaml.safe_load(shown) == merged(config.as_mapping(config.read(tiny).experiment), change)


def test_the_printed_config_reads_back_as_the_same(tiny):
    flags = ["--training.updates_per_step=1/2", "--environment.parameters.g", "5", "--agent.tau", "1e-7"]
    code, shown, err = call("train", tiny, "--print-config", *flags)
    (tiny.parent / "printed.yaml").write_text(shown)
    assert (code, err) == (0, "")
    assert call("train", tiny.parent / "printed.yaml", "--print-config") == (0, shown, "")


def test_help_on_what_is_no_section_suggests_one():
    assert refused(call("train", "--help", "agnt"), "--help knows no section agnt; did you mean agent") == []
    assert refused(call("train", "--help", "xyz"), "use one of environment, agent, ") == []


@pytest.mark.parametrize("given", [["--agent", ""], ["--agent="]])
def test_an_empty_section_is_refused(given, tiny):
    assert refused(call("train", tiny, *given, "--print-config"), "--agent is empty; give a YAML mapping") == []


def test_the_short_help_is_one_screen_and_names_the_sections():
    code, shown, err = call("train", "--help")
    assert (code, err) == (0, "")
    assert len(shown.splitlines()) <= 24
    assert all(field.name in shown for field in dataclasses.fields(settings.Experiment))
    assert "--agent" not in shown
    assert "--coordinator" not in shown


def test_the_whole_help_names_every_setting_with_its_meaning_rule_and_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    code, shown, _ = call("train", "--help-all")
    assert code == 0
    having = {(leaf.path, leaf.alternative) for leaf in config.leaves()}
    texts = {text.split()[0]: text for text in re.split(r"\n  (?=--)", shown)}
    for path, field, alternative in config.leaves():
        line = texts[f"--{path}"]
        assert field.metadata["meaning"] in line
        assert alternative in line or (path, "") in having  # a custom section has it, too
        assert all(f"{words} {bound}" in line for words, bound in field.metadata["rule"].items())
    assert "[fourier] highest frequency" in texts["--agent.features.order"]
    assert "[polynomial] highest total degree" in texts["--agent.features.order"]
    assert {"--noise", "--agent.features", "--population.selection", "--coordinator"} <= {*texts}


@pytest.mark.parametrize(
    ("topic", "shown", "hidden"),
    [
        ("noise", "--noise.scale", "--agent.tau"),
        ("agent.actor", "--agent.actor.squash", "--agent.actor_learning_rate"),
        ("agent.tau", "--agent.tau", "--agent.gamma"),
        ("distributed", "--coordinator", "--noise.scale"),
    ],
)
def test_the_help_of_a_section_shows_its_settings_alone(topic, shown, hidden):
    code, text, _ = call("resume", "--help", topic)
    flags = [line.split()[0] for line in text.splitlines() if line.strip().startswith("--")]
    assert (code, shown in flags, hidden in flags) == (0, True, False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("jaxddpg re", {"report", "resume", "render"}),
        ("jaxddpg train x.yaml --agent.tau", {"--agent.tau"}),
        ("jaxddpg train x.yaml --agent.critic.normalization ", {"none", "layer", "batch"}),
        ("jaxddpg sweep x.yaml --reporting.wandb ", {"true", "false"}),
        ("jaxddpg train --chi", set()),
        ("jaxddpg resume --help dist", {"distributed"}),
        ("jaxddpg train --help agent.actor_", {"agent.actor_learning_rate"}),
    ],
)
def test_a_shell_completes_commands_flags_and_choices(line, expected, tmp_path):
    """As a shell asks argcomplete, which answers on descriptor 8."""
    variables = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
    command = f"{shlex.quote(sys.executable)} -m jaxddpg 8>{tmp_path / 'found'} 9>/dev/null"
    subprocess.run(["sh", "-c", command], env=os.environ | variables, check=True)
    assert {word.strip() for word in (tmp_path / "found").read_text().splitlines() if word} == expected


def test_help_and_config_errors_wait_for_no_import(tmp_path):
    """What one of them imported, all that follow it would show."""
    codes = {
        "--help": 0,
        "train --help": 0,
        "train bad.yaml": 2,
        "train absent.yaml": 2,
        "train good.yaml --print-config": 0,
    }
    (tmp_path / "bad.yaml").write_text("agent: {gamma: 2}\nenvironment: {name: Pendulum}")
    (tmp_path / "good.yaml").write_text(TINY)
    program = (
        "import sys\n"
        "from jaxddpg.cli.main import main\n"
        "for arguments in sys.argv[1:]:\n"
        "    try:\n"
        "        code = main(arguments.split())\n"
        "    except SystemExit as end:\n"
        "        code = end.code\n"
        "    print('found:', code, sorted({'jax', 'gymnax', 'flax', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *codes], cwd=tmp_path, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("found: ")]
    assert found == [f"found: {code} []" for code in codes.values()]


def test_training_ends_well_and_shows_its_members(trained):
    run, (code, out, err) = trained
    assert code == 0
    assert "error" not in err
    assert "IQM of the final returns" in out
    assert f"run directory: {run}" in out
    assert [any(f" {seed} " in line for line in out.splitlines()) for seed in (5, 6)] == [True, True]


def test_the_runs_config_is_the_experiment_that_ran(trained):
    population = config.read(trained[0] / "config.yaml").experiment.population
    assert (population.seed, population.num_seeds) == (5, 2)


def test_evaluation_leaves_a_table_with_a_line_per_member(trained):
    code, out, err = call("evaluate", trained[0], "--num-episodes", "3")
    with (trained[0] / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (code, err) == (0, "")
    assert [row["seed"] for row in rows] == ["5", "6"]
    assert f"{float(rows[1]['return_mean']):.5g}" in out
    assert "3 episodes per seed" in out


def test_the_table_of_an_evaluation_stays_when_its_reader_has_gone(trained, tmp_path):
    """As in `jaxddpg evaluate RUN | head -1`."""
    path = tmp_path / "evaluation.csv"
    read, write = os.pipe()
    os.close(read)
    # Without a buffer each word goes into the pipe at once, and nothing is left that closing it would write.
    with (
        io.TextIOWrapper(open(write, "wb", buffering=0), write_through=True) as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        assert main(["evaluate", str(trained[0]), "--num-episodes", "3", "--output", str(path)]) == 0
    assert err.getvalue() == ""
    with path.open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["5", "6"]


@pytest.mark.slow
def test_the_command_ends_in_order_when_its_reader_has_gone(trained, tmp_path):
    path = tmp_path / "evaluation.csv"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "jaxddpg", "evaluate", trained[0], "--num-episodes", "2", "--output", path]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    with path.open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["5", "6"]


@pytest.mark.parametrize(
    ("command", "output"), [("evaluate", "a.csv"), ("plot", "a.png"), ("render", "a.gif"), ("evaluate", "")]
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    command, output, trained, tmp_path, monkeypatch
):
    def computed(*_, **__):
        raise AssertionError

    monkeypatch.setattr(load_module, "load_policies", computed)
    monkeypatch.setattr(show_module, "_all_curves", computed)
    place = tmp_path / "none" / output if output else tmp_path
    reason = "No such file or directory" if output else "Is a directory"
    said = call(command, trained[0], "--output", place)
    assert refused(said, f"--output {place} cannot be written: {reason}; choose another") == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", "checkpoints/1.json"])
def test_an_output_never_replaces_a_file_of_a_run(name, trained):
    before = (trained[0] / name).read_bytes()
    said = call("evaluate", trained[0], "--num-episodes", "2", "--output", trained[0] / name)
    assert refused(said, "would replace a file of the run in", "choose another") == []
    assert (trained[0] / name).read_bytes() == before


def test_a_link_to_a_file_that_is_not_there_yet_is_an_output(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "there.png")
    config.check_output(tmp_path / "link.png")
    assert [*tmp_path.iterdir()] == [tmp_path / "link.png"]


def test_plot_draws_the_run_again(trained):
    picture = trained[0] / "learning_curve.png"
    before = picture.read_bytes()
    picture.unlink()
    assert call("plot", trained[0]) == (0, f"{picture}\n", "")
    assert picture.read_bytes() == before


def test_plot_draws_several_runs_into_a_new_picture(trained, diverged, tmp_path):
    code, _, _ = call("plot", trained[0], diverged[0], "--output", tmp_path / "both.png")
    assert code == 0
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_several_runs_need_a_name_for_their_picture(trained, diverged):
    assert refused(call("plot", trained[0], diverged[0]), "--output FILE.png") == []


@pytest.mark.parametrize("place", ["/proc/picture.png", "nowhere/picture.png", "picture.what"])
def test_a_picture_that_cannot_be_written_is_refused(place, trained, tiny):
    assert refused(call("plot", trained[0], "--output", place), place) == []


def test_a_run_whose_members_all_diverged_has_failed_and_says_so_even_if_quiet(diverged):
    code, out, err = diverged[1]
    assert (code, out) == (1, "")
    *sentences, error = err.splitlines()
    assert len(sentences) == 2
    for seed, sentence in enumerate(sentences):
        assert sentence.startswith(f"member with seed {seed} diverged at env step ")
    assert error.startswith("error: 2 of 2 members diverged; lower the learning rates")


def test_a_run_without_a_directory_gets_one_of_its_configs_name(diverged):
    assert diverged[0].name.startswith("tiny-")


def test_a_diverged_run_is_complete_and_readable(diverged):
    lines = (diverged[0] / "metrics.jsonl").read_text().splitlines()
    final = json.loads(lines[-1], parse_constant=pytest.fail)
    summary = json.loads((diverged[0] / "summary.json").read_text(), parse_constant=pytest.fail)
    assert final["eval/return_mean"] is None
    assert summary["members"][0]["final_return"] is None
    assert summary["members"][0]["best_epoch"] == 0
    assert (diverged[0] / "learning_curve.png").is_file()


def test_networks_that_do_not_fit_the_config_are_refused(trained, tmp_path):
    """A config changed after the run."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(trained[0] / "checkpoints")
    (run / "config.yaml").write_text((trained[0] / "config.yaml").read_text().replace("[8]", "[16]", 1))
    sentence = "hidden_sizes is [16], but this run was trained with [8], which cannot be changed"
    assert refused(call("evaluate", run), sentence) == []


@pytest.fixture(
    scope="module",
    params=[
        signal.SIGTERM,
        *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGHUP)),
    ],
    ids=lambda s: s.name,
)
def stopped(request, tmp_path_factory):
    """A run that would take for ever, stopped by a signal: the signal, the directory, the exit code and last words."""
    number, directory = request.param, tmp_path_factory.mktemp("stopped")
    text = TINY.replace("{parameters: {max_steps_in_episode: 10}}", "{name: 'probes:endless_reward'}")
    (directory / "endless.yaml").write_text(text.replace("num_epochs: 1", "num_epochs: 100_000"))
    command = [sys.executable, "-m", "jaxddpg", "train", directory / "endless.yaml", "--run-dir", directory / "run"]
    # The factory's module lies in the current directory, as a user's own would.
    with subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True) as process:
        try:
            metrics, deadline = directory / "run" / "metrics.jsonl", time.monotonic() + 120
            while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return number, directory / "run", process.returncode, err


def test_a_signal_ends_a_run_with_its_exit_code(stopped):
    number, run, returned, err = stopped
    assert returned == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}[number]
    assert err.splitlines()[-1].startswith("stopped after epoch")
    assert str(run) in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_second_signal_ends_a_long_epoch_at_once(tmp_path):
    """While the main thread waits for JAX, where no handler of Python runs."""
    text = TINY.replace("{parameters: {max_steps_in_episode: 10}}", "{name: 'probes:endless_reward'}")
    (tmp_path / "endless.yaml").write_text(re.sub(r"steps_per_epoch: \w+", "steps_per_epoch: 200_000_000", text))
    command = [sys.executable, "-m", "jaxddpg", "train", tmp_path / "endless.yaml", "--run-dir", tmp_path / "run"]
    with subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if line.startswith("epoch 0/"):
                    process.send_signal(signal.SIGTERM)
                if line.startswith("stopping after this epoch"):
                    process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 143
            assert line == "stopped; `jaxddpg resume` continues from the newest checkpoint, if there is one\n"
        finally:
            process.kill()


@pytest.mark.parametrize(("ignored", "received"), [(False, signal.SIGHUP), (True, 0)])
def test_a_closed_terminal_stops_a_run_unless_it_is_ignored(ignored, received):
    """As `nohup` has it."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            deadline = time.monotonic() + (0.5 if ignored else 30)
            while not signals.received and time.monotonic() < deadline:
                time.sleep(0.01)
            assert signals.received == received
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_stopped_run_is_complete_up_to_its_last_epoch(stopped, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    run = stopped[1]
    env_steps, _ = by_epoch(rows.read_rows(run / "metrics.jsonl"))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == len(env_steps) - 1
    assert summary["env_steps_total"] == env_steps[-1]
    assert np.all(np.abs(load_policy(run)(jax.numpy.zeros(1))) <= 1)
    assert (run / "learning_curve.png").is_file()


def test_an_empty_run_directory_is_refused(tmp_path, monkeypatch):
    """As of a shell variable that is not set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert refused(call("train", "tiny.yaml", "--run-dir", ""), "--run-dir is empty") == []


def test_a_table_in_a_file_is_not_cut(capsys):
    console.print_table("title", [{f"a long heading {number}": -1464.25 for number in range(12)}], "summary")
    printed = capsys.readouterr().out
    assert printed.count("a long heading") == printed.count("-1464.2") == 12
    assert "…" not in printed


def test_the_number_of_an_epoch_is_no_text(trained):
    with pytest.raises(ConfigError, match="epoch is '1', but must be one of newest, best, 1"):
        load_policy(trained[0], epoch="1")


def test_a_policy_says_which_observations_it_takes(trained):
    policy = load_policy(trained[0])
    assert policy(np.zeros((7, 3))).shape == (7, 1)
    with pytest.raises(ValueError, match=r"observation has shape \(2,\), but must be \[\.\.\., 3\]"):
        policy(np.zeros(2))
