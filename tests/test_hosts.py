"""Several processes train the members of one run: they meet over loopback, and one may be lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import call, comparable, lines, refused, summary_of, tiny

from jaxddpg import checkpoint, composition, config, hosts, run_directory
from jaxddpg.analysis import evaluate, load_policy
from jaxddpg.config import ConfigError
from jaxddpg.experiment import resume, run

EPOCHS = 60
SECTIONS = {
    "environment": {"name": "Pendulum-v1"},
    "agent": {"batch_size": 16, "actor": {"hidden_sizes": [16]}, "critic": {"hidden_sizes": [16]}},
    "replay": {"capacity": 2_000},
    "training": {"num_envs": 2, "warmup_steps": 20, "steps_per_epoch": 50, "num_epochs": EPOCHS},
    "evaluation": {"num_episodes": 2},
    "checkpoint": {"interval_seconds": 0},
    "population": {"num_seeds": 5},
}


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def start(*command, process_id=None, port=None, num_processes=2, seconds=60, **variables):
    """A process of a run, which speaks to loopback only."""
    meeting = ["--distributed", "--meet-seconds", seconds]
    if process_id is not None:
        meeting += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", num_processes, "--process-id", process_id]
    environment = os.environ | {"JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxddpg", *map(str, [*command, *meeting])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | variables,
    )


def both(*command, **variables):
    """What two processes said: (code, out, err) each."""
    port = free_port()
    processes = [start(*command, process_id=process_id, port=port, **variables) for process_id in range(2)]
    return [(process.wait(), *process.communicate()) for process in processes]


def part(directory, process_id):
    return directory / "hosts" / f"{process_id}_of_2"


def rows(directory, process_id):
    path = part(directory, process_id) / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "two.yaml"
    path.write_text(config.dump(config.parse(SECTIONS)))
    return path


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """An uninterrupted run of two processes, and what they said."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, both("train", experiment, "--run-dir", directory)


def lose(experiment, directory, process_id):
    """Kills one of two processes in the middle of a run: what the other said, and how long that took."""
    port = free_port()
    processes = [start("train", experiment, "--run-dir", directory, process_id=k, port=port) for k in range(2)]
    while min(len(rows(directory, k)) for k in range(2)) < 5 * 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[process_id].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    processes[process_id].communicate()
    out, err = processes[1 - process_id].communicate()
    return (processes[1 - process_id].returncode, out, err), time.monotonic() - killed


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(whole):
    """The metrics of the first 200 updates of every member are equal."""
    directory, said = whole
    assert [code for code, _, _ in said] == [0, 0]
    sections = SECTIONS | {"training": SECTIONS["training"] | {"num_epochs": 4}}
    alone = run(config.parse(sections))
    two = sorted(
        (json.loads(line) for k in range(2) for line in rows(directory, k)), key=lambda r: (r["epoch"], r["member"])
    )
    assert [r["seed"] for r in two[:5]] == [0, 1, 2, 3, 4]
    for one, other in zip(two, alone.rows, strict=False):
        for name in ("eval/return_mean", "eval/q_start_mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_states_are_equal_after_200_updates(experiment, tmp_path):
    flags = ("--training.num_epochs", "4")
    assert [code for code, _, _ in both("train", experiment, "--run-dir", tmp_path / "two", *flags)] == [0, 0]
    alone = run(config.read(experiment, {"training.num_epochs": 4}))
    observation = np.array([[0.3, -0.95, 1.0], [1.0, 0.0, 0.0]], np.float32)
    place = tmp_path / "two"
    for process_id, members in ((0, slice(0, 2)), (1, slice(2, 5))):
        like = {"agent": composition.state_like(config.of_run(place), members.stop - members.start).agent}
        found = checkpoint.restore(part(place, process_id), 4, like, partial=True)
        jax.tree.map(
            lambda a, b, own=members: np.testing.assert_allclose(a, b[own], atol=1e-5), found["agent"], alone.agents
        )
    assert load_policy(place, 4)(observation).shape == (2, 1)


@pytest.mark.slow
def test_one_process_tells_what_came_of_all(whole):
    directory, ((_, out, err), (_, other_out, other_err)) = whole
    assert "error" not in err + other_err
    assert "Traceback" not in err + other_err
    assert other_out == ""
    assert f"run directory: {directory}" in out
    summary = json.loads((directory / "summary.json").read_text())
    assert [member["seed"] for member in summary["members"]] == [0, 1, 2, 3, 4]
    assert summary["updates_total"] == 5 * EPOCHS * 50
    assert (directory / "learning_curve.png").stat().st_size > 10_000
    assert not (part(directory, 0) / "learning_curve.png").exists()


@pytest.mark.slow
def test_files_of_several_processes_are_read_as_one(whole, tmp_path):
    directory, _ = whole
    assert [r["seed"] for r in evaluate(directory, num_episodes=2)] == [0, 1, 2, 3, 4]
    assert call("plot", directory, "--output", tmp_path / "curves.png")[0] == 0
    assert call("report", directory, "--output", tmp_path / "report")[0] == 0
    assert "| run | 5 |" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_lost_process_ends_the_run_in_one_sentence_and_both_go_on_to_the_bit(lost, experiment, whole, tmp_path):
    """Be it the one that serves as coordinator or another."""
    (code, out, err), seconds = lose(experiment, tmp_path / "run", lost)
    assert (code, out) == (1, "")
    assert seconds < 30
    told = [line for line in err.splitlines() if line.startswith("error")]
    assert len(told) == 1
    assert "another process of this run was lost" in told[0]
    assert "Traceback" not in err
    assert "Check failure" not in err
    assert len(rows(tmp_path / "run", lost)) < EPOCHS
    said = both("resume", tmp_path / "run")
    assert [code for code, _, _ in said] == [0, 0], said
    for process_id in range(2):
        assert comparable(part(tmp_path / "run", process_id)) == comparable(part(whole[0], process_id))
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["members"]) == 5


@pytest.mark.slow
def test_one_process_goes_on_with_the_parts_of_two(experiment, whole, tmp_path):
    both("train", experiment, "--run-dir", tmp_path / "run", "--training.num_epochs", "3")
    result = resume(tmp_path / "run", {"training.num_epochs": 5})
    assert [r["epoch"] for r in result.rows] == [epoch for epoch in range(6) for _ in range(5)]
    told = [{k: v for k, v in r.items() if k == "member" or k.startswith("eval/")} for r in result.rows]
    parts = [comparable(part(whole[0], k)) for k in range(2)]
    expected = sorted((r for own in parts for r in own if r["epoch"] < 6), key=lambda r: (r["epoch"], r["member"]))
    assert told == [{k: v for k, v in r.items() if k == "member" or k.startswith("eval/")} for r in expected]
    assert len(result.agents.actor["params"]["Dense_0"]["bias"]) == 5


@pytest.mark.slow
def test_an_interrupted_run_is_read_part_by_part(experiment, whole, tmp_path):
    """Each part has its own newest checkpoint, and its own best."""
    shutil.copytree(whole[0], tmp_path / "run")
    for epoch in checkpoint.epochs(part(tmp_path / "run", 1)):
        if epoch == EPOCHS:
            checkpoint.remove(part(tmp_path / "run", 1), epoch)
    found = evaluate(tmp_path / "run", num_episodes=2)
    assert [r["epoch"] for r in found] == [EPOCHS] * 2 + [EPOCHS - 1] * 3
    expected = evaluate(whole[0], num_episodes=2)
    assert found[:2] == expected[:2]
    best = [member["best_epoch"] for member in summary_of(whole[0])["members"]]
    assert [row["epoch"] for row in evaluate(whole[0], num_episodes=2, epoch="best")] == best


@pytest.mark.slow
def test_a_member_that_diverges_is_told_of_by_the_first_process(experiment, tmp_path):
    """Of three rates one is far too high; its member is in the part of the other process."""
    path = "--population.sweep.agent"
    axis = [f"{path}.critic_learning_rate", "[1e-3,1e-3,1e30]", f"{path}.actor_learning_rate", "[1e-3,2e-3,3e-3]"]
    axis += ["--population.combine", "zip", "--num-seeds", "1"]
    said = both("sweep", experiment, "--run-dir", tmp_path / "run", "--training.num_epochs", "2", *axis)
    assert [code for code, _, _ in said] == [0, 0], said
    assert "diverged at env step" in said[0][2]
    assert "not finite" in said[0][1]  # the mean of its variant
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [member["final_return"] is None for member in summary["members"]] == [False, False, True]
    assert len(summary["variants"]) == 3


@pytest.mark.slow
def test_a_signal_to_all_stops_all_and_they_go_on(experiment, whole, tmp_path):
    port = free_port()
    processes = [start("train", experiment, "--run-dir", tmp_path / "run", process_id=k, port=port) for k in range(2)]
    while min(len(rows(tmp_path / "run", k)) for k in range(2)) < 5 * 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    assert not (tmp_path / "run" / "summary.json").exists()
    assert [code for code, _, _ in both("resume", tmp_path / "run")] == [0, 0]
    for process_id in range(2):
        assert comparable(part(tmp_path / "run", process_id)) == comparable(part(whole[0], process_id))


@pytest.mark.slow
def test_slurm_tells_who_is_who(experiment, tmp_path):
    """The variables that srun sets; the port follows from the job's number."""
    job = next(job for job in range(1, 4096) if free(61440 + job))
    variables = {
        "SLURM_JOB_ID": f"{job}",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{61440 + job}",
    }
    command = ("train", experiment, "--run-dir", tmp_path / "run", "--training.num_epochs", "2")
    processes = [
        start(*command, **variables, SLURM_PROCID=f"{k}", SLURM_LOCALID=f"{k}", JAX_LOCAL_DEVICE_IDS="0")
        for k in range(2)
    ]
    said = [(process.wait(), *process.communicate()) for process in processes]
    assert [code for code, _, _ in said] == [0, 0], said
    assert [len(rows(tmp_path / "run", k)) for k in range(2)] == [6, 9]


def free(port):
    with socket.socket() as place:
        return place.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_a_taken_port_is_said(experiment, tmp_path):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        port = place.getsockname()[1]
        process = start("train", experiment, "--run-dir", tmp_path / "run", process_id=0, port=port)
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        f"error: --coordinator 127.0.0.1:{port}: the port is taken on this host; name another"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("process_id", [0, 1])
def test_a_missing_process_is_said(process_id, experiment, tmp_path):
    command = ("train", experiment, "--run-dir", tmp_path / "run", "--quiet")
    process = start(*command, process_id=process_id, port=free_port(), seconds=3)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "error: not all processes have come within 3 s" in err


@pytest.mark.slow
def test_processes_with_other_settings_do_not_train_together(experiment, tmp_path):
    port = free_port()
    command = ("train", experiment, "--run-dir", tmp_path / "run")
    first = start(*command, process_id=0, port=port)
    second = start(*command, "--agent.gamma", "0.5", process_id=1, port=port)
    for process in (first, second):
        assert "error: the processes were given different settings" in process.communicate()[1]
        assert process.returncode == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ("--distributed --run-dir {}", "--distributed finds no cluster that tells where to meet, such as SLURM"),
        ("--distributed", "--distributed needs a --run-dir, the same for all processes"),
        ("--num-processes 2 --run-dir {}", "--coordinator, --num-processes, --process-id and --meet-seconds need"),
        ("--distributed --run-dir {} --meet-seconds -3", "--meet-seconds is -3, but must be at least 1"),
        (
            "--distributed --run-dir {} --coordinator a:1 --num-processes 0 --process-id 0",
            "--num-processes is 0, but must be at least 1",
        ),
        ("--distributed --run-dir {} --coordinator a:1", "tell where to meet only together"),
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
def test_where_to_meet_must_be_told(flags, fragment, experiment, tmp_path):
    said = call("train", experiment, "--quiet", *flags.format(tmp_path / "run").split())
    assert not refused(said, fragment)


def test_members_are_shared_by_no_more_processes_than_there_are(tmp_path):
    with pytest.raises(ConfigError, match="4 processes cannot share 3 members"):
        run(tiny(), tmp_path / "run", host=hosts.Host(0, 4))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ("--population.selection.method pbt --population.selection.interval 1", "must be in one process"),
        ("--population.on_divergence stop", "population.on_divergence is stop, but processes do not tell each other"),
        ("--population.sweep.agent.batch_size [4,8]", "population.sweep falls into several programs"),
        ("--num-seeds 1", "2 processes cannot share 1 member;"),
    ],
)
def test_what_processes_cannot_share_is_said_before_they_meet(flags, fragment, experiment, tmp_path):
    command = "sweep" if "sweep" in flags else "train"
    meeting = "--distributed --coordinator 127.0.0.1:1 --num-processes 2 --process-id 0 --quiet"
    said = call(command, experiment, "--run-dir", tmp_path / "run", *flags.split(), *meeting.split())
    assert not refused(said, fragment)


def test_parts_hold_every_member_once():
    experiment = config.parse({"population": {"num_seeds": 11}})
    for count in (1, 2, 3, 11):
        parts = run_directory.parts(Path("run"), experiment, count)
        assert [member for one in parts for member in one.members] == [*range(11)]
        assert len({one.directory for one in parts}) == count


def test_a_run_of_one_process_has_no_parts(tmp_path):
    run(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "hosts").exists()
    assert len(lines(tmp_path / "run")) == 9
    shutil.rmtree(tmp_path / "run")
