import contextlib
import functools
import itertools
import json
import operator
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import (
    MEMBERS,
    after,
    call,
    comparable,
    cut_a_file,
    empty_it,
    equal,
    figures,
    flip_a_byte,
    lines,
    refused,
    summary_of,
    thorough,
    tiny,
)

from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.runs import cache, checkpoint
from jaxddpg.runs.load import evaluate, load_policy
from jaxddpg.runs.run import RunError
from jaxddpg.runs.start import resume, run
from jaxddpg.training import population
from jaxddpg.training.population import Population

EPOCHS = 6
NUMBERS = {**config.as_mapping(tiny())["agent"], "tau": 0.5, "actor_learning_rate": 0.1}


def small(**changes):
    """Three members, a checkpoint after every epoch; some episodes run over the end of an epoch."""
    training = vars(tiny().training) | {"num_epochs": EPOCHS}
    return tiny(**{"training": training, "checkpoint": {"interval_seconds": 0, "keep": 3}} | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, run(small(), directory)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Makes a copy of a run that was stopped after so many epochs, the start among them."""
    made = tmp_path_factory.mktemp("interrupted")

    @functools.cache
    def original(epochs):
        run(small(), made / str(epochs), should_stop=after(epochs))
        return made / str(epochs)

    return lambda epochs, directory: shutil.copytree(original(epochs), directory)


@pytest.mark.parametrize("interruptions", [(1,), (3,), (2, 2, 1)])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(interruptions, whole, interrupted, tmp_path):
    """Metrics, parameters and evaluations to the bit, after any number of interruptions."""
    interrupted(interruptions[0], tmp_path / "run")
    for epochs in interruptions[1:]:
        resume(tmp_path / "run", should_stop=after(epochs))
    assert len(lines(tmp_path / "run")) < len(lines(whole[0]))
    result = resume(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(whole[0])
    equal(result, whole[1])
    assert [row["epoch"] for row in result.rows] == [epoch for epoch in range(EPOCHS + 1) for _ in range(3)]
    seconds = [row["wall_seconds"] for row in result.rows[::3]]
    assert seconds == sorted(seconds)


def test_more_epochs_than_the_rates_last_are_cautioned(tmp_path):
    """At the start of a run and where it is resumed; the run is made all the same."""
    decaying = small(agent={**config.as_mapping(small())["agent"], "learning_rate_decay_steps": 56})
    assert decaying.training.env_steps == 56
    run(decaying, tmp_path / "run")  # any warning is an error here
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = call("resume", tmp_path / "run", "--training.num_epochs", EPOCHS + 1, "--quiet")
    assert code == 0
    assert err == (
        "warning: agent.learning_rate_decay_steps is 56, but the run has 64 env steps, and "
        "agent.final_actor_learning_rate and agent.final_critic_learning_rate are 0: in the last 8 env steps the actor "
        "and the critic learn nothing; train a new run with --agent.learning_rate_decay_steps 64\n"
    )
    assert lines(tmp_path / "run")[-1]["epoch"] == EPOCHS + 1
    with pytest.warns(UserWarning, match="agent.learning_rate_decay_steps is 55, but the run has 56 env steps"):
        run(config.parse(config.as_mapping(decaying), {"agent.learning_rate_decay_steps": 55}).experiment)


def test_resuming_a_finished_run_changes_no_file_and_gives_its_result(whole):
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    result = resume(whole[0])
    assert {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()} == before
    equal(result, whole[1])
    assert str(result.rows) == str(whole[1].rows)  # a NaN does not equal itself
    assert result.summary["compile_seconds"] == whole[1].summary["compile_seconds"] > 0
    assert result.summary["checkpoints"]["written"] == EPOCHS + 1


def test_a_finished_run_that_cannot_be_written_gives_its_result(whole, monkeypatch):
    before, opened = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}, os.open

    def refuse(path, flags, *others, **named):
        if str(path).startswith(str(whole[0])) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *others, **named)

    monkeypatch.setattr(os, "open", refuse)
    equal(resume(whole[0]), whole[1])
    assert {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")} == before


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_file_that_cannot_be_read_is_named_with_a_remedy(name, whole, monkeypatch):
    opened = Path.open

    def refuse(path, *arguments, **named):
        if path == whole[0] / name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    sentence = f"{whole[0] / name}: Permission denied; correct its permissions"
    with pytest.raises(RunError, match=f"^{sentence}, then run `jaxddpg resume {whole[0]}` to continue$"):
        resume(whole[0])
    assert refused(call("report", whole[0], "--output", whole[0] / "report"), f"error: {sentence}\n") == []


def test_a_summary_of_an_earlier_interruption_is_replaced(whole, interrupted, tmp_path):
    interrupted(3, tmp_path / "run")
    earlier = (tmp_path / "run" / "summary.json").read_text()
    resume(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(earlier)  # as if killed before the last one was written
    assert resume(tmp_path / "run").summary["epochs"] == EPOCHS
    assert summary_of(tmp_path / "run")["epochs"] == EPOCHS


def test_more_epochs_make_it_the_longer_run(whole, tmp_path):
    shorter = small(training=vars(tiny().training) | {"num_epochs": 2})
    run(shorter, tmp_path / "run")
    equal(resume(tmp_path / "run", {"training.num_epochs": EPOCHS}), whole[1])
    assert comparable(tmp_path / "run") == comparable(whole[0])
    assert config.read(tmp_path / "run" / "config.yaml").experiment == small()
    (told,) = map(json.loads, (tmp_path / "run" / "resumptions.jsonl").read_text().splitlines())
    assert (told["epoch"], told["changes"]) == (2, {"training.num_epochs": [2, EPOCHS]})


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled from now on, in a process that has kept nothing."""
    monkeypatch.setattr(population, "_PROGRAMS", {})
    found, compile = [], jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *args, **how: found.append(1) or compile(*args, **how))
    return found


def test_a_resumed_run_compiles_what_it_needs_once(compiled, tmp_path, monkeypatch):
    run(small(), tmp_path / "run", should_stop=after(3))
    assert len(compiled) == 3
    monkeypatch.setattr(population, "_PROGRAMS", {})  # as in another process
    resume(tmp_path / "run", should_stop=after(2))
    assert len(compiled) == 3 + 2  # epoch and evaluation; the start is on disk
    resume(tmp_path / "run")
    assert len(compiled) == 3 + 2


def test_a_run_says_how_long_compiling_took_without_the_cache(compiled, monkeypatch, capsys, tmp_path):
    before, shown, kept = jax.config.jax_compilation_cache_dir, [], []
    try:
        cache.enable_compilation_cache(tmp_path)
        for programs in ({}, {}, None):  # of this process: none, none, those of the run before
            if programs is not None:
                monkeypatch.setattr(population, "_PROGRAMS", programs)
            run(small(), quiet=False)
            shown.append(capsys.readouterr().err)
            (file,) = (tmp_path / "seconds").iterdir()
            kept.append(file.read_text())
    finally:
        cache.enable_compilation_cache(before)
    assert "compiling init, epoch, evaluate\n" in shown[0]
    assert f"compiling init, epoch, evaluate (last time {float(kept[0]):.0f} s for all)\n" in shown[1]
    assert "compiling" not in shown[2]
    assert kept[0] == kept[1] == kept[2]  # later runs read JAX's cache


def test_runs_of_one_structure_compile_once_in_a_process(compiled):
    """Seeds and traced numbers are inputs."""
    one, other = run(small()), run(small(agent=NUMBERS, population={"seed": 9, "num_seeds": MEMBERS}))
    assert len(compiled) == 3
    assert one.summary["members"][0]["final_return"] != other.summary["members"][0]["final_return"]
    equal(run(small()), one)


def test_programs_are_kept_by_what_they_depend_on():
    """A setting that gives the program its shape, or one of JAX that a program depends on, makes another one."""
    programs = build.populate(config.resolve(small()).run()).programs
    assert build.populate(config.resolve(small(agent=NUMBERS)).run()).programs is programs
    assert build.populate(config.resolve(small(agent=NUMBERS | {"batch_size": 8})).run()).programs is not programs
    with jax.default_matmul_precision("highest"):
        assert build.populate(config.resolve(small()).run()).programs is not programs
    assert build.populate(config.resolve(small()).run()).programs is programs


@pytest.mark.slow
def test_only_so_many_programs_are_kept(compiled, monkeypatch):
    monkeypatch.setattr(population, "_MAX_PROGRAMS", 2)
    agent = config.as_mapping(small())["agent"]
    for size in (4, 5, 6, 5, 4):
        run(small(agent=agent | {"batch_size": size}))
    assert len(compiled) == 3 * 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("agent.tau", 0.5),
        ("agent.batch_size", 8),
        ("population.num_seeds", 4),
        ("population.seed", 1),
        ("training.steps_per_epoch", 8),
        ("training.num_envs", 4),
        ("evaluation.num_episodes", 3),
        ("environment.name", "Pendulum-v1"),
    ],
)
def test_what_would_alter_the_learning_is_refused(path, value, whole):
    before = {file: file.read_bytes() for file in whole[0].iterdir() if file.is_file()}
    old = operator.attrgetter(path)(config.read_run(whole[0]).experiment)
    with pytest.raises(ConfigError) as error:
        resume(whole[0], {path: value} | ({"environment.parameters": {}} if path == "environment.name" else {}))
    assert f"{path} is {value}, but this run was trained with {config.text(old)}, which cannot" in str(error.value)
    assert before == {file: file.read_bytes() for file in whole[0].iterdir() if file.is_file()}


def test_fewer_epochs_than_there_were_are_refused(whole):
    reached = f"num_epochs is 2, but the run has already reached epoch {EPOCHS}; use at least {EPOCHS}"
    with pytest.raises(ConfigError, match=reached):
        resume(whole[0], {"training.num_epochs": 2})


def test_another_placement_goes_on_with_the_same_states(whole, interrupted, tmp_path):
    interrupted(3, tmp_path / "run")
    result = resume(tmp_path / "run", {"population.placement": 3})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result.agents, whole[1].agents)


def test_a_run_interrupted_again_after_going_back_goes_on_from_there(whole, interrupted, tmp_path):
    """The newest checkpoint was passed over; what is written after it is what counts."""
    interrupted(5, tmp_path / "run")
    assert checkpoint.epochs(tmp_path / "run")[:3] == [4, 3, 2]
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[: 3 * 3]))  # up to epoch 2
    resume(tmp_path / "run", should_stop=after(1))
    assert max(checkpoint.epochs(tmp_path / "run")) == 3
    result = resume(tmp_path / "run")
    told = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "resumptions.jsonl").read_text().splitlines()]
    assert told == [2, 3]
    equal(result, whole[1])
    assert comparable(tmp_path / "run") == comparable(whole[0])


@pytest.mark.parametrize("harm", [flip_a_byte, cut_a_file, empty_it], ids=lambda harm: harm.__name__)
def test_an_older_checkpoint_serves_where_the_newest_is_damaged(harm, whole, interrupted, tmp_path, capfd):
    interrupted(4, tmp_path / "run")
    assert checkpoint.epochs(tmp_path / "run")[:2] == [3, 2]
    harm(tmp_path / "run" / "checkpoints" / "3")
    result = resume(tmp_path / "run", quiet=False)
    assert "the checkpoint of epoch 3 is damaged" in capfd.readouterr().err
    equal(result, whole[1])
    assert comparable(tmp_path / "run") == comparable(whole[0])


def cut(path, characters):
    path.write_text(path.read_text()[:characters])


@pytest.mark.parametrize("share", [0.99, 0.8, 0.4, 0.0])
def test_metrics_cut_in_the_middle_of_a_line_are_told_again(share, whole, interrupted, tmp_path):
    """At the worst all checkpoints lie beyond them, and have to be given up by hand; the end is the same."""
    interrupted(4, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    cut(metrics, int(share * len(metrics.read_text())))
    if share < 0.5:
        with pytest.raises(ConfigError, match="the metrics end before the checkpoint"):
            resume(tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    equal(resume(tmp_path / "run"), whole[1])
    assert comparable(tmp_path / "run") == comparable(whole[0])


def test_a_run_without_a_checkpoint_starts_anew(whole, interrupted, tmp_path):
    interrupted(2, tmp_path / "run")
    for manifest in (tmp_path / "run" / "checkpoints").glob("*.json"):
        manifest.unlink()
    equal(resume(tmp_path / "run"), whole[1])
    assert comparable(tmp_path / "run") == comparable(whole[0])


def test_a_run_killed_while_it_wrote_its_config_can_begin_again(whole, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.partial").write_text("agent:\n  gam")
    equal(run(small(), tmp_path / "run"), whole[1])


def test_two_processes_never_share_a_directory(interrupted, tmp_path):
    with contextlib.ExitStack() as stack:
        interrupted(2, tmp_path / "run")
        code = (
            "import fcntl, os, sys, time\n"
            "fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)\n"
            "print('held', flush=True)\n"
            "time.sleep(60)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
        other = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(other.kill)
        other.stdout.readline()
        with pytest.raises(ConfigError, match=f"another process is training in {tmp_path / 'run'}"):
            resume(tmp_path / "run")


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk that is soon full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_a_run_in_a_sentence_and_room_lets_it_go_on(whole, tiny_disk):
    ballast, run_directory, asked = tiny_disk / "ballast", tiny_disk / "run", itertools.count()

    def fill():
        """Leaves room for nothing after the third epoch, once the checkpoint of the second is written."""
        if (epoch := next(asked)) == 3:
            while epoch - 1 not in checkpoint.epochs(run_directory):
                time.sleep(0.01)
            with contextlib.suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(b"0" * 4096)
        return False

    with pytest.raises(RunError, match=r"(?s)^[^\n]*(disk is full|No space left)[^\n]*resume [^\n]*$"):
        run(small(), run_directory, should_stop=fill)
    assert checkpoint.epochs(run_directory)
    ballast.unlink()
    equal(resume(run_directory), whole[1])
    assert comparable(run_directory) == comparable(whole[0])


def test_the_command_goes_on_and_ends_like_training(whole, interrupted, tmp_path):
    interrupted(2, tmp_path / "run")
    code, out, err = call("resume", tmp_path / "run")
    assert code == 0, err
    assert "continuing after epoch 1" in err
    assert "IQM of the final returns" in out
    assert comparable(tmp_path / "run") == comparable(whole[0])


def test_the_command_refuses_what_is_no_run_and_what_cannot_change(whole, tmp_path):
    assert refused(call("resume", tmp_path), f"{tmp_path} is not a run directory") == []
    assert refused(call("resume", whole[0], "--agent.tau", "0.1"), "agent.tau is 0.1, but") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kills"), [(signal.SIGKILL, 1), thorough(signal.SIGKILL, 2), thorough(signal.SIGTERM, 1)]
)
def test_a_killed_process_is_gone_on_with_in_a_new_one(how, kills, whole, tmp_path):
    """At a moment that chance chose, once or several times, until the run is complete: it is the run never stopped."""
    (tmp_path / "small.yaml").write_text(config.dump(small()))
    chance, directory, times = random.Random(int(how)), tmp_path / "run", 0
    program = [sys.executable, "-m", "jaxddpg"]
    command = [*program, "train", tmp_path / "small.yaml", "--run-dir", directory, "--quiet"]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={jax.local_device_count()}"
    environment = os.environ | {"XLA_FLAGS": flags}
    while True:
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 120
            known = len((directory / "metrics.jsonl").read_text().splitlines()) if times else 0
            # Killed soon after it has begun to learn, or in the first seconds.
            while times < kills and process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    if len((directory / "metrics.jsonl").read_text().splitlines()) > known:
                        break
                time.sleep(0.01)
            if times < kills:
                time.sleep(0.1 * chance.random())
                process.send_signal(how)
            error = process.communicate(timeout=120)[1].decode()
        times += 1
        assert "Traceback" not in error
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM)
        command = [*program, "resume", directory, "--quiet"]
    assert comparable(directory) == comparable(whole[0])
    state = checkpoint.restore(directory, EPOCHS, {"agent": jax.eval_shape(lambda: whole[1].agents)}, partial=True)
    jax.tree.map(np.testing.assert_array_equal, state["agent"], whole[1].agents)
    assert np.isfinite(load_policy(directory)(np.zeros(2))).all()


@pytest.mark.parametrize("lost", ["metrics", "file", "checkpoints"])
def test_what_is_sound_is_never_overwritten_by_starting_anew(lost, whole, tmp_path):
    """All that a run has done is either gone on from or kept."""
    shutil.copytree(whole[0], tmp_path / "run")
    if lost == "metrics":
        (tmp_path / "run" / "metrics.jsonl").write_text("[1, 2]\n")
    if lost == "file":
        (tmp_path / "run" / "metrics.jsonl").unlink()
    for epoch in checkpoint.epochs(tmp_path / "run"):
        if lost == "checkpoints":
            flip_a_byte(tmp_path / "run" / "checkpoints" / str(epoch))
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    remedy = "start a new run with its config.yaml" if lost == "checkpoints" else "delete .* to start over"
    with pytest.raises(ConfigError, match=f"cannot continue.*; restore the files of the run, or {remedy}") as error:
        resume(tmp_path / "run")
    (sentence,) = error.value.errors
    assert ("is damaged" if lost == "checkpoints" else "metrics end") in sentence
    assert kept == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "value"), [("gamma", 0.5), ("warmup_steps", 6), ("seed", 9), ("num_seeds", 2)])
def test_a_config_edited_by_hand_is_refused(name, value, whole, tmp_path):
    """A checkpoint knows the settings that led to it."""
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(re.sub(rf"^(  {name}): \S+", rf"\1: {value}", path.read_text(), flags=re.MULTILINE))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    sentence = rf"{name} is {value}, but this run was trained with .*, which cannot be changed"
    with pytest.raises(ConfigError, match=sentence):
        resume(tmp_path / "run", {"training.num_epochs": EPOCHS + 1})
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_policies_are_those_of_the_config(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("max_action: 2.0", "max_action: 1.0"))
    with pytest.raises(ConfigError, match=r"max_action: 1.0.* this run was trained with .*, which cannot be changed"):
        evaluate(tmp_path / "run", num_episodes=1)


def test_an_older_policy_is_said_to_be_one(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    flip_a_byte(tmp_path / "run" / "checkpoints" / str(EPOCHS))
    sentence = f"epoch {EPOCHS} is damaged; using the policies of epoch {EPOCHS - 1} instead"
    with pytest.warns(UserWarning, match=sentence):
        rows = evaluate(tmp_path / "run", num_episodes=1)
    assert {row["epoch"] for row in rows} == {EPOCHS - 1}


def test_an_epoch_that_ended_is_told_and_kept_though_the_next_cannot_begin(tmp_path, monkeypatch):
    def fails_in_the_third_epoch(self, clock, *state):
        if clock.epoch == 3:
            raise FloatingPointError("invalid value (nan)")
        return epoch(self, clock, *state)

    epoch = Population.epoch
    monkeypatch.setattr(Population, "epoch", fails_in_the_third_epoch)
    with pytest.raises(FloatingPointError):
        run(small(), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["epoch"] == 2
    assert checkpoint.epochs(tmp_path / "run")[0] == 2


def test_a_config_that_was_emptied_is_refused(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="is empty, so it is not what the run wrote; restore it"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"5\n", b"{}\n", b'{"epoch": "3", "member": 0}\n', b'{"epoch": 3}\n'])
def test_garbage_after_the_metrics_costs_nothing(garbage, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(garbage)
    equal(resume(tmp_path / "run"), whole[1])
    assert comparable(tmp_path / "run") == comparable(whole[0])


def test_a_picture_that_cannot_be_drawn_costs_no_result(whole, interrupted, tmp_path):
    interrupted(3, tmp_path / "run")
    (tmp_path / "run" / "learning_curve.png").unlink()
    (tmp_path / "run" / "learning_curve.png").mkdir()
    with figures(), pytest.warns(UserWarning, match="jaxddpg plot .* draws it"):
        equal(resume(tmp_path / "run"), whole[1])


@pytest.mark.parametrize(("name", "value"), [("threefry_partitionable", False), ("random_seed_offset", 1)])
def test_settings_of_jax_that_change_numbers_are_refused(name, value, whole, interrupted, tmp_path):
    """Another stream of random numbers, or another precision, would make another run of it."""
    interrupted(3, tmp_path / "run")
    before = getattr(jax.config, f"jax_{name}")
    jax.config.update(f"jax_{name}", value)
    try:
        with pytest.raises(
            ConfigError,
            match=f"jax_{name} is {value}, but this run was started with {before}, .*JAX_{name.upper()}={before}",
        ):
            resume(tmp_path / "run")
    finally:
        jax.config.update(f"jax_{name}", before)
    equal(resume(tmp_path / "run"), whole[1])


def test_the_generator_of_keys_is_not_that_of_jaxs_default(whole, interrupted, tmp_path):
    interrupted(3, tmp_path / "run")
    with jax.default_prng_impl("rbg"):
        result = resume(tmp_path / "run")
        another = run(small())
    equal(result, whole[1])
    equal(another, whole[1])


def test_a_run_that_has_ended_is_not_trained_again_when_its_checkpoints_are_gone(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for changes in ({}, {"training.num_epochs": 50}):
        with pytest.raises(ConfigError, match="has ended, but its checkpoints are gone, so it cannot continue"):
            resume(tmp_path / "run", changes)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_during_its_only_checkpoint_starts_again(whole, tmp_path):
    """All its metrics are there, but neither a checkpoint nor the summary, which is written last."""
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "summary.json").unlink()
    equal(resume(tmp_path / "run"), whole[1])


def test_checkpoints_that_cannot_be_read_are_not_taken_for_absent(whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.os, "listdir", refuse)
    with pytest.raises(ConfigError, match="checkpoints cannot be read: Permission denied; make it readable"):
        resume(tmp_path / "run", {"training.num_epochs": 50})
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", "null", "{}", ""])
def test_a_damaged_summary_is_made_again(whole, tmp_path, content):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(content)
    assert resume(tmp_path / "run").summary["epochs"] == whole[1].summary["epochs"]


def test_a_checkpoint_with_rows_of_the_replay_in_two_dimensions_can_be_resumed(
    whole, interrupted, tmp_path, monkeypatch
):
    """As earlier versions wrote them."""
    directory, begin = tmp_path / "run", checkpoint.begin
    shape = (MEMBERS, small().replay.capacity, -1)

    def begin_as_before(run, epoch, state, *rest):
        rows = np.asarray(state["replay"].rows).reshape(shape)
        return begin(run, epoch, state | {"replay": state["replay"].replace(rows=rows)}, *rest)

    monkeypatch.setattr(checkpoint, "begin", begin_as_before)
    run(small(), directory, should_stop=after(2))
    monkeypatch.setattr(checkpoint, "begin", begin)
    equal(resume(directory), whole[1])
