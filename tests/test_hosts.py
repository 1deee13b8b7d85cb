"""Several processes as one JAX program, over loopback: they give the numbers of one, and one of them may be lost."""

import operator
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import helpers
import jax
import numpy as np
import pytest
from helpers import call, comparable, refused, summary_of, thorough, tiny

from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.config.build import state_like
from jaxddpg.runs import checkpoint
from jaxddpg.runs import directory as run_directory
from jaxddpg.runs import distributed as hosts
from jaxddpg.runs import start as runs
from jaxddpg.runs.run import RunError, readable_errors
from jaxddpg.runs.start import resume

EPOCHS = 4
SECTIONS = {
    "environment": {"name": "Pendulum-v1"},
    "agent": {"batch_size": 16, "actor": {"hidden_sizes": [16]}, "critic": {"hidden_sizes": [16]}},
    "replay": {"capacity": 2_000},
    "training": {"num_envs": 4, "warmup_steps": 20, "steps_per_epoch": 50, "num_epochs": EPOCHS},
    "evaluation": {"num_episodes": 2},
    "checkpoint": {"interval_seconds": 0, "keep": 99},
    "population": {"num_seeds": 5},
}
RATES = "--population.sweep.agent.actor_learning_rate"
CASES = {
    "members": [],
    "a member in 4 shards": ["--num-seeds", "1", "--training.num_shards", "4"],
    "2 members in 2 shards": ["--num-seeds", "2", "--training.num_shards", "2"],
    "pbt": [
        *(RATES, "{geomspace: [1e-5, 1e-2, 5]}", "--num-seeds", "1"),
        *("--population.selection", "{method: pbt, interval: 1, share: 0.4}"),
    ],
    "halving": [
        *(RATES, "{geomspace: [1e-5, 1e-2, 5]}", "--num-seeds", "1"),
        *("--population.selection", "{method: halving, interval: 1}"),
    ],
    "two programs": ["--population.sweep.agent.batch_size", "[16, 8]", "--num-seeds", "2"],
}
"""What 2 processes x 2 devices do as 1 process x 4."""


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def start(*command, process_id=None, port=None, num_processes=2, seconds=120, devices=2, **variables):
    """A process of a run, which speaks to loopback only; or by default one by itself."""
    meeting = ["--distributed", "--meet-seconds", seconds] if port else []
    if process_id is not None:
        meeting += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", num_processes, "--process-id", process_id]
    where = {"JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_CPU_DEVICES": f"{devices}"}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxddpg", *map(str, [*command, *meeting])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | where | variables,
    )


def start_both(*command, **variables):
    port = free_port()
    return [start(*command, process_id=process_id, port=port, **variables) for process_id in range(2)]


def ended(processes):
    """What processes said: (code, out, err) each."""
    said = [process.communicate() for process in processes]
    return [(process.returncode, *streams) for process, streams in zip(processes, said, strict=True)]


def both(*command, **variables):
    return ended(start_both(*command, **variables))


def errors(err):
    return [line for line in err.splitlines() if line.startswith("error")]


def wait_for(path, lines, processes):
    """Until a file of metrics has so many lines."""
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)


def children(process):
    """The processes that a process has started."""
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_alive(number):
    status = Path(f"/proc/{number}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "two.yaml"
    path.write_text(config.dump(config.parse(SECTIONS).experiment))
    return path


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """An uninterrupted run of two processes, and what they said."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, both("train", experiment, "--run-dir", directory)


def equal(one, other, tolerance):
    """The final states of two runs, whoever wrote them, and what stands in their metrics."""
    plan = config.read_run(one)
    trained = {
        path: [row[path] for row in comparable(one)] for path in ("member", "parent") if path in comparable(one)[0]
    }
    assert trained == {path: [row[path] for row in comparable(other)] for path in trained}

    like = vars(state_like(plan))
    states = [checkpoint.restore(run, checkpoint.epochs(run)[0], like, partial=True) for run in (one, other)]
    # Of members that no longer train the replay and the environments mean nothing.
    running = [row.get("parent", 0) is not None for row in comparable(one)[-len(plan.members) :]]

    def compare(a, b):
        a, b = a[running], b[running]
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, *states)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["2 members in 2 shards", *(thorough(case) for case in CASES if case != "2 members in 2 shards")]
)
def test_two_processes_give_the_numbers_of_one(case, experiment, tmp_path):
    """After 200 updates, with as many devices in all."""
    command = "sweep" if any("sweep" in flag for flag in CASES[case]) else "train"
    assert [code for code, *_ in both(command, experiment, "--run-dir", tmp_path / "two", *CASES[case])] == [0, 0]
    alone = start(command, experiment, "--run-dir", tmp_path / "one", *CASES[case], devices=4)
    assert [code for code, *_ in ended([alone])] == [0]
    runs = sorted(path.parent.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("metrics.jsonl"))
    assert len(runs) == (2 if case == "two programs" else 1)
    for run in runs:
        equal(tmp_path / "two" / run, tmp_path / "one" / run, 1e-5)
        for row, other in zip(comparable(tmp_path / "two" / run), comparable(tmp_path / "one" / run), strict=True):
            assert row["eval/return_mean"] == pytest.approx(other["eval/return_mean"], rel=1e-5)
    if case == "pbt":  # a member of one process continued from one of the other
        moves = [(row["parent"], row["member"]) for row in comparable(tmp_path / "two")]
        assert any((parent < 3) != (member < 3) for parent, member in moves)


@pytest.mark.slow
def test_there_is_one_run_directory_and_the_first_process_reports(whole):
    directory, ((_, out, err), (_, other_out, other_err)) = whole
    assert "error" not in err + other_err
    assert other_out == ""
    assert "Gloo" not in out + err + other_err
    assert f"run directory: {directory}" in out
    assert "5 members on 3 cpu devices of 2 processes, 2 per device, 1 at a time, 1 idle" in err
    summary = summary_of(directory)
    assert [member["seed"] for member in summary["members"]] == [0, 1, 2, 3, 4]
    assert (directory / "learning_curve.png").stat().st_size > 10_000
    assert not (directory / "hosts").exists()
    assert call("evaluate", directory, "--num-episodes", 2)[0] == 0


def customized(directory, code):
    """Variables under which Python runs this code when it starts."""
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', '')}"}


def as_second(monkeypatch, *decisions):
    """This process as the second of two, of which the first has no error and decides so."""
    of_first = iter(decisions)
    monkeypatch.setattr(runs, "check_shared", lambda _: None)
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(hosts, "_gathered", lambda value: [next(of_first) if value is None else value, value])


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The directory of a small run of one process, and its result."""
    directory = tmp_path_factory.mktemp("short") / "run"
    return directory, runs.run(tiny(checkpoint={"interval_seconds": 0}), directory)


def test_the_first_process_decides_from_where_all_continue(short, tmp_path, monkeypatch):
    """The second sees the newest checkpoint, but it is not the one with which the first continues."""
    directory = shutil.copytree(short[0], tmp_path / "run")
    as_second(monkeypatch, [1, []], True)
    result = resume(directory)
    assert [row["epoch"] for row in result.rows] == [row["epoch"] for row in short[1].rows]
    helpers.equal(result, short[1])
    assert [found["checkpoints"]["written"] for found in (result.summary, short[1].summary)] == [1, 3]


def test_the_first_process_decides_that_a_run_has_ended(short, monkeypatch):
    as_second(monkeypatch, [2, []], {"epochs": 2})
    assert resume(short[0]).summary == {"epochs": 2}


def test_the_metrics_that_the_first_process_has_are_needed(short, tmp_path, monkeypatch):
    directory = shutil.copytree(short[0], tmp_path / "run")
    (directory / "metrics.jsonl").write_text("")
    as_second(monkeypatch, [2, []])
    with pytest.raises(ConfigError, match=r"metrics\.jsonl differs from the one process 0 reads"):
        resume(directory)


def test_a_directory_must_be_the_one_in_which_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(hosts, "_gathered", lambda value: [value, value])
    run_directory.check_shared(tmp_path)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(hosts, "_gathered", lambda value: [".shared-by-the-first" if value is None else value])
    with pytest.raises(ConfigError, match="is not on a file system that all processes share"):
        run_directory.check_shared(tmp_path)
    (tmp_path / ".shared-by-the-first").touch()
    run_directory.check_shared(tmp_path)


@pytest.mark.parametrize("start", [runs.resume, partial(runs.run, tiny())])
def test_a_directory_is_looked_for_in_all_processes_before_it_is_used(start, short, tmp_path, monkeypatch):
    directory = shutil.copytree(short[0], tmp_path / "run") if start is runs.resume else tmp_path / "new"
    monkeypatch.setattr(runs, "check_shared", lambda found: (_ for _ in ()).throw(ConfigError([str(found)])))
    with pytest.raises(ConfigError, match=str(directory)):
        start(directory)


def test_what_the_first_process_refuses_all_refuse(monkeypatch):
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(hosts, "_gathered", lambda value: [["it is damaged"], value])
    with pytest.raises(ConfigError, match="process 0: it is damaged"):
        hosts.of_first(lambda: pytest.fail("the first process decides"))


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1", True),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network error", True),
        ("INTERNAL: NCCL operation ncclCommInitRank() failed: unhandled system error", False),
        ("UNKNOWN: Gloo context initialization failed: Connect timeout", False),
    ],
)
def test_a_loss_is_claimed_only_where_a_peer_is_gone_and_the_text_is_shown(text, lost, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    expected = "another process of this run was lost or stopped (" if lost else ""
    with (
        pytest.raises(RunError if lost else jax.errors.JaxRuntimeError, match=re.escape(expected + text)),
        readable_errors(Path("run")),
    ):
        raise jax.errors.JaxRuntimeError(text)


KILLED = """
import os, signal
from jaxddpg.config import build
from jaxddpg.runs import checkpoint
calls = []
def killing(function):
    def third(*args):
        calls.append(function)
        result = function(*args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return third
def population(*args, make=build.Population):
    made = make(*args)
    made.evaluate = killing(made.evaluate)
    return made
"""
"""Kills its own process when the third call of a function has returned, whose work continues in other threads."""
KILLED_IN = {
    "training": "",
    "evaluation": KILLED + "build.Population = population",
    "a checkpoint": KILLED + "checkpoint.begin = killing(checkpoint.begin)",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "lost"),
    [
        ("training", 0),
        *(thorough(where, lost) for where in KILLED_IN for lost in (0, 1) if (where, lost) != ("training", 0)),
    ],
)
def test_a_lost_process_ends_the_run_in_one_sentence_and_it_continues_to_the_bit(
    where, lost, experiment, whole, tmp_path
):
    """Be it the one that serves as coordinator or another."""
    directory, port = tmp_path / "run", free_port()
    flags = ["--training.num_epochs", EPOCHS if KILLED_IN[where] else 2_000]
    variables = [customized(tmp_path, KILLED_IN[where]) if process_id == lost else {} for process_id in range(2)]
    processes = [
        start("train", experiment, "--run-dir", directory, *flags, process_id=process_id, port=port, **own)
        for process_id, own in enumerate(variables)
    ]
    wait_for(directory / "metrics.jsonl", 5 * (1 if KILLED_IN[where] else 3), processes)
    children_before = [children(process) for process in processes]
    if not KILLED_IN[where]:
        os.kill(*children_before[lost], signal.SIGKILL)
    killed = time.monotonic()
    said = ended(processes)
    assert time.monotonic() - killed < 30
    assert [code for code, *_ in said] == [1, 1]
    for process_id, (_, out, err) in enumerate(said):
        assert out == ""
        (sentence,) = errors(err)
        what = (
            "the trainer was killed by SIGKILL"
            if process_id == lost
            else "another process of this run was lost or stopped"
        )
        assert what in sentence
        assert f"`jaxddpg resume {directory}` continues from the newest checkpoint" in sentence
        assert "Traceback" not in err
    assert not any(is_alive(child) for (child,) in children_before)
    if KILLED_IN[where]:
        assert checkpoint.epochs(directory)[0] <= 1
    for epoch in checkpoint.epochs(directory):
        if epoch >= EPOCHS:
            checkpoint.remove(directory, epoch)
    content = (directory / "config.yaml").read_text().replace("num_epochs: 2000", f"num_epochs: {EPOCHS}")
    (directory / "config.yaml").write_text(content)
    shutil.copytree(directory, tmp_path / "alone")
    assert [code for code, *_ in both("resume", directory)] == [0, 0]
    assert comparable(directory) == comparable(whole[0])
    equal(directory, whole[0], 0)
    if where == "training":
        resume(tmp_path / "alone")
        equal(tmp_path / "alone", whole[0], 1e-5)


def supervised(monkeypatch, capfd, code):
    """The exit code of a command whose child runs this code, and what is printed."""
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **how: popen([sys.executable, "-c", code], **how))
    return hosts.supervise([], 5, "look into it"), *capfd.readouterr()


@pytest.mark.parametrize(
    ("code", "shown", "sentence"),
    [
        ("print('Unknown flag', flush=True); os._exit(1)", "Unknown flag\n", "the trainer ended with exit code 1"),
        (
            "print('NCCL INFO\\n' * 20_000 + 'NCCL WARN'); raise KeyError",
            "NCCL WARN\nTraceback",
            "ended with exit code 1",
        ),
        ("print('out of order', flush=True); os.abort()", "out of order\n", "the trainer was killed by SIGABRT"),
        ("print('the heartbeat is missing', flush=True); os.abort()", "", "another process of this run was lost or"),
    ],
)
def test_what_the_libraries_wrote_is_shown_where_no_sentence_explains_the_end(
    code, shown, sentence, monkeypatch, capfd
):
    joined = f"import os; os.write(1, b'{hosts._JOINED}\\n'); "
    end, out, err = supervised(monkeypatch, capfd, joined + code)
    assert (end, out) == (1, "")
    assert shown in err
    assert sentence in errors(err)[0]
    assert len(err.splitlines()) <= hosts._TAIL_LINES + 1
    assert hosts._JOINED not in err
    assert shown or len(err.splitlines()) == 1


@pytest.mark.parametrize("code", ["hosts.leave(1)", "os._exit(2)", "os._exit(143)"])
def test_what_a_sentence_has_explained_needs_no_more(code, monkeypatch, capfd):
    script = f"import os; from jaxddpg.runs import distributed as hosts; print('noise', flush=True); {code}"
    expected = int(re.search(r"\d+", code)[0])
    assert supervised(monkeypatch, capfd, script) == (expected, "", "")


@pytest.mark.slow
def test_a_flag_that_ends_a_trainer_in_xla_is_shown(experiment, tmp_path):
    command = ("train", experiment, "--run-dir", tmp_path / "run")
    start_one = start(*command, process_id=0, port=free_port(), num_processes=1, XLA_FLAGS="--xla_bogus_flag=1")
    ((code, _, err),) = ended([start_one])
    assert code == 1
    assert "xla_bogus_flag" in err


SLOW = """
import time
from jaxddpg.training.population import Population
def slow(*args, compile=Population.compile):
    time.sleep(40)
    return compile(*args)
Population.compile = slow
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_a_process_may_compile_for_longer_than_the_others(experiment, tmp_path):
    """Than the 30 s that Gloo waits for a connection."""
    port, command = free_port(), ("train", experiment, "--run-dir", tmp_path / "run", "--training.num_epochs", "1")
    other = start(*command, process_id=1, port=port, **customized(tmp_path, SLOW))
    said = ended([start(*command, process_id=0, port=port), other])
    assert [code for code, *_ in said] == [0, 0], said


@pytest.mark.slow
def test_a_parent_takes_its_child_with_it(experiment, tmp_path):
    directory = tmp_path / "run"
    processes = start_both("train", experiment, "--run-dir", directory, "--training.num_epochs", 2_000)
    wait_for(directory / "metrics.jsonl", 5, processes)
    (child,) = children(processes[1])
    processes[1].kill()
    processes[1].communicate()
    (code, _, err), _ = ended(processes)
    assert code == 1
    assert "another process of this run was lost" in errors(err)[0]
    assert not is_alive(child)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_one_stops_all_after_the_same_epoch(number, code, experiment, tmp_path):
    directory = tmp_path / "run"
    processes = start_both("train", experiment, "--run-dir", directory, "--training.num_epochs", 2_000)
    wait_for(directory / "metrics.jsonl", 5 * 2, processes)
    processes[1].send_signal(number)
    said = ended(processes)
    assert [returned for returned, *_ in said] == [code, code], said
    reached = summary_of(directory)["epochs"]
    assert 0 < reached < 2_000
    assert f"stopped after epoch {reached}; to continue, run `jaxddpg resume {directory}`" in said[0][2]
    assert checkpoint.epochs(directory)[0] == reached
    again = both("resume", directory, "--training.num_epochs", reached + 1)
    assert [returned for returned, *_ in again] == [0, 0]


def slurm(tasks):
    """The variables that srun sets for each of so many tasks, and the port, which follows from the step's number."""
    step = next(step for step in random.sample(range(4096), 4096) if free(61440 + step))
    port = 61440 + step
    common = {
        "SLURM_JOB_ID": "4096",
        "SLURM_STEP_ID": f"{step}",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": f"{tasks}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
    }
    return [common | {"SLURM_PROCID": f"{task}", "SLURM_LOCALID": f"{task}"} for task in range(tasks)], port


@pytest.mark.slow
def test_slurm_says_who_is_who(experiment, tmp_path):
    each, port = slurm(2)
    command = ("train", experiment, "--run-dir", tmp_path / "run", "--training.num_epochs", "1")
    said = ended([start(*command, port=port, **variables) for variables in each])
    assert [code for code, *_ in said] == [0, 0], said


@pytest.mark.parametrize(("made", "command"), [(False, "train configs/pendulum.yaml --num-seeds"), (True, "resume")])
def test_the_job_for_slurm_gives_each_task_its_cores(made, command, tmp_path):
    """With an `srun` that prints what it is given."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    (tmp_path / "srun").write_text('#!/bin/bash\necho "$SRUN_CPUS_PER_TASK $@"\n')
    (tmp_path / "srun").chmod(0o755)
    if made:
        (tmp_path / "runs" / "pendulum_1024").mkdir(parents=True)
        (tmp_path / "runs" / "pendulum_1024" / "config.yaml").touch()
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "32"}
    script = Path(__file__).parent.parent / "examples" / "slurm.sh"
    done = subprocess.run(["bash", script], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"32 jaxddpg {command} ")


def free(port):
    with socket.socket() as place:
        return place.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_NODEID": "3"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_NODEID": "3"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0", "CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "CUDA_VISIBLE_DEVICES": "0,1"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0", "ROCR_VISIBLE_DEVICES": "0"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0", "HIP_VISIBLE_DEVICES": "0"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=2"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_TRES_PER_TASK": "cpu=4"}, False),
        ({"SLURM_GPUS_PER_TASK": "2", "JAX_LOCAL_DEVICE_IDS": "0"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "JAX_LOCAL_DEVICE_IDS": "0"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
    ],
)
def test_a_process_takes_all_gpus_where_it_is_alone_or_has_its_own(variables, expected):
    assert hosts.takes_all_devices(variables) == expected


def test_what_differs_between_processes_is_named():
    alike = {"command": "train", "--debug": False}
    hosts.check_alike([alike, alike, alike])
    with pytest.raises(ConfigError) as refusal:
        hosts.check_alike([alike, alike, {"command": "resume", "agent.gamma": 0.5}])
    assert refusal.value.errors == [
        "command is train in process 0, but resume in process 2; it must be the same in all processes",
        "--debug is False in process 0, but None in process 2; it must be the same in all processes",
        "agent.gamma is None in process 0, but 0.5 in process 2; it must be the same in all processes",
    ]


@pytest.mark.slow
def test_unequal_numbers_of_devices_are_refused(experiment, tmp_path):
    port, command = free_port(), ("train", experiment, "--run-dir", tmp_path / "run")
    said = ended([start(*command, process_id=number, port=port, devices=1 + number) for number in range(2)])
    assert [code for code, *_ in said] == [2, 2], said
    for *_, err in said:
        (sentence,) = errors(err)
        place, rule = sentence.split("; ")
        assert place == "error: the number of devices is 1 in process 0, but 2 in process 1"
        assert rule == "it must be the same in all processes"


def test_a_process_without_a_device_of_the_mesh_is_refused(monkeypatch):
    for num_shards, owners in [(1, [0, 1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2]), (2, [0, 0, 1, 1, 2, 2]), (2, [0, 1])]:
        build.check_processes(num_shards, owners)
    build.check_processes(3, [0, 0, 1, 1])  # one device idle, but each process has another
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=number) for number in range(3)])
    with pytest.raises(ConfigError, match="leaves process 2 none of the 3 devices; start fewer processes, or choose a"):
        build.populate(config.resolve(tiny(training=vars(tiny().training) | {"num_shards": 2})).run())


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "visible"), [("1", "all"), ("2", "0")])
def test_what_a_task_takes_under_slurm(tasks, visible):
    """The GPUs that JAX will look for, all cores, and no cache of programs; with simulated variables and no GPU."""
    (variables,), _ = slurm(1)
    simulated = variables | {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": tasks}
    script = (
        "from jaxddpg.runs import distributed as hosts; hosts.join(hosts.Rendezvous(), {}); import jax; "
        "print(jax.config.read('jax_cuda_visible_devices'), jax.local_device_count(), "
        "jax.config.jax_enable_compilation_cache)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | simulated
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{visible} {len(os.sched_getaffinity(0))} False"


@pytest.fixture
def no_cluster(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR_")):
            monkeypatch.delenv(name)


def test_a_port_that_another_coordinator_serves_is_taken(no_cluster):
    """JAX lets coordinators share it."""
    with socket.socket() as other:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="the coordinator port is in use or not permitted on this host"):
            hosts.check_port(hosts.Rendezvous(address, 2, 0))
        hosts.check_port(hosts.Rendezvous(address, 2, 1))
        with socket.create_connection(other.getsockname()):
            other.accept()[0].close()
    hosts.check_port(hosts.Rendezvous(address, 2, 0))  # though a connection of the run before is still known


def test_each_step_of_a_slurm_job_has_its_port(no_cluster, monkeypatch):
    ports = set()
    for job, step in [(1, 0), (1, 1), (2, 0)]:
        for name, value in {"JOB_ID": job, "STEP_ID": step, "PROCID": 1}.items():
            monkeypatch.setenv(f"SLURM_{name}", f"{value}")
        hosts.check_port(hosts.Rendezvous())
        ports.add(int(os.environ.pop("JAX_COORDINATOR_PORT")))
    assert len(ports) == 3
    assert all(61440 <= port < 65536 for port in ports)


@pytest.mark.slow
def test_a_taken_port_is_said(experiment, tmp_path):
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another coordinator
        place.bind(("127.0.0.1", 0))
        place.listen()
        process = start("train", experiment, "--run-dir", tmp_path / "run", process_id=0, port=place.getsockname()[1])
        ((code, out, err),) = ended([process])
    assert (code, out) == (2, "")
    assert errors(err) == [f"error: {hosts._PORT_TAKEN}"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("process_id", [0, 1])
def test_a_missing_process_is_said(process_id, experiment, tmp_path):
    command = ("train", experiment, "--run-dir", tmp_path / "run", "--quiet")
    ((code, out, err),) = ended([start(*command, process_id=process_id, port=free_port(), seconds=3)])
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "error: timed out after 3 s waiting for all processes" in err


LITTLE_MEMORY = "from jaxddpg.runs import memory\nmemory.free = lambda: 1000\n"
LITTLE_DISK = """
import shutil
usage, calls = shutil.disk_usage, []
def few(path):
    calls.append(path)
    return usage(path)._replace(free=0 if len(calls) > 2 else 2**40)
shutil.disk_usage = few
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "fragments"),
    [
        (
            ["--agent.gamma", "0.5", "--debug"],
            "",
            ["--debug is False in process 0, but True", "agent.gamma is 0.99 in"],
        ),
        ([], LITTLE_MEMORY, ["process 1: this experiment needs "]),
    ],
    ids=["settings", "memory"],
)
def test_what_one_process_meets_all_say(flags, code, fragments, experiment, tmp_path):
    port, command = free_port(), ("train", experiment, "--run-dir", tmp_path / "run")
    other = start(*command, *flags, process_id=1, port=port, **customized(tmp_path, code))
    said = ended([start(*command, process_id=0, port=port), other])
    assert [code for code, *_ in said] == [2, 2], said
    assert [len(errors(err)) for *_, err in said] == [len(fragments)] * 2, said
    assert all(map(operator.contains, errors(said[0][2]), fragments))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_disk_of_one_ends_all(experiment, tmp_path):
    port, directory = free_port(), tmp_path / "run"
    command = ("train", experiment, "--run-dir", directory)
    other = start(*command, process_id=1, port=port, **customized(tmp_path, LITTLE_DISK))
    said = ended([start(*command, process_id=0, port=port), other])
    assert [code for code, *_ in said] == [1, 1], said
    assert all("the checkpoint of epoch 2 cannot be written: the disk is full" in errors(err)[0] for *_, err in said)
    assert checkpoint.epochs(directory) == [1, 0]
    assert [code for code, *_ in both("resume", directory)] == [0, 0]


@pytest.mark.slow
def test_a_process_may_have_nothing_to_train(experiment, tmp_path):
    said = both("train", experiment, "--run-dir", tmp_path / "run", "--num-seeds", "1", "--training.num_epochs", "1")
    assert [code for code, *_ in said] == [0, 0]
    assert "1 member on 1 cpu device of 2 processes, 3 idle" in said[0][2]


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ("--distributed", "--distributed needs a --run-dir, the same for all processes"),
        ("--num-processes 2 --run-dir {}", "--coordinator, --num-processes, --process-id and --meet-seconds need"),
        ("--coordinator a:1 --print-config", "--coordinator, --num-processes, --process-id and --meet-seconds need"),
        ("--distributed --run-dir {} --meet-seconds -3", "--meet-seconds is -3, but must be at least 1"),
        (
            "--distributed --run-dir {} --coordinator a:1 --num-processes 0 --process-id 0",
            "--num-processes is 0, but must be at least 1",
        ),
        ("--distributed --run-dir {} --coordinator a:1", "must be given together"),
        (
            "--distributed --run-dir {} --coordinator nowhere --num-processes 2 --process-id 0",
            "--coordinator is nowhere, but must be HOST:PORT, such as node1:29500",
        ),
        (
            "--distributed --run-dir {} --coordinator a:1 --num-processes 2 --process-id 2",
            "--process-id is 2, but must be at least 0 and below 2",
        ),
    ],
)
def test_where_to_meet_must_be_given(flags, fragment, experiment, tmp_path):
    said = call("train", experiment, "--quiet", *flags.format(tmp_path / "run").split())
    assert not refused(said, fragment)


@pytest.mark.slow
def test_without_a_cluster_the_flags_are_asked_for(experiment, tmp_path):
    ((code, _, err),) = ended([start("train", experiment, "--run-dir", tmp_path / "run", port=1)])
    assert code == 2
    assert "--distributed could not detect a cluster environment such as SLURM" in errors(err)[0]
