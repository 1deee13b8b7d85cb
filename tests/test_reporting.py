import contextlib
import io
import json
import math
import re
import time

import numpy as np
import pytest
import wandb
from helpers import TINY, call, events, refused

from jaxddpg.report import console
from jaxddpg.report.rows import plain_json
from jaxddpg.runs import loggers

NAN, INF = math.nan, math.inf


def rows(epoch=1, members=2, **changes):
    return [
        {
            "epoch": epoch,
            "member": member,
            "seed": 7 + member,
            "env_steps": 100 * epoch,
            "diverged_by": "",
            "diverged_at": None,
            "eval/return_mean": 10.0 * epoch + member,
            "perf/env_steps_per_second": 1234.0,
            "perf/updates_per_second": 56.0,
        }
        | changes
        for member in range(members)
    ]


@pytest.fixture
def offline(monkeypatch):
    wandb.teardown()  # another test of this process may have set it up without these variables
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def stored_by_wandb(directory):
    wandb.teardown()  # its file is written by a process of its own; this waits for it
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    return path.read_bytes()


def displayed(num_epochs, epochs, quiet=False):
    with contextlib.redirect_stderr(io.StringIO()) as shown, console.Display("A title", num_epochs, quiet) as display:
        for epoch in epochs:
            display.epoch(rows(epoch))
    return shown.getvalue()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_is_null(value):
    nested = {"a": value, "b": [value, 1.5, {"c": (value, 2)}], "d": "text", "e": True}
    assert plain_json(nested) == {"a": None, "b": [None, 1.5, {"c": [None, 2]}], "d": "text", "e": True}


def test_numpy_numbers_that_are_not_finite_are_null():
    assert plain_json([np.float64(NAN), np.float64(1.5)]) == [None, 1.5]


def test_the_metrics_file_has_a_line_per_row(tmp_path):
    with loggers.MetricsFile(tmp_path) as file:
        file.epoch(rows(0))
        file.epoch(rows(1, **{"eval/return_mean": NAN}))
    read = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert read == rows(0) + rows(1, **{"eval/return_mean": None})


def test_an_epoch_is_on_disk_before_the_next(tmp_path):
    with loggers.MetricsFile(tmp_path) as file:
        file.epoch(rows(0))
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_tensorboard_has_a_folder_per_member_with_the_metrics_over_env_steps(tmp_path):
    with loggers.TensorBoard(tmp_path) as board:
        board.epoch(rows(1))
        board.epoch(rows(2))
    returns = {key: value for key, value in events(tmp_path / "tensorboard" / "seed_8").items() if "eval" in key[0]}
    assert returns == {("eval/return_mean", 100): 11.0, ("eval/return_mean", 200): 21.0}
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"seed_7", "seed_8"}


def test_tensorboard_has_no_point_of_what_is_not_finite(tmp_path, capfd):
    """tensorboardX would write a warning for each."""
    with loggers.TensorBoard(tmp_path) as board:
        board.epoch(rows(1, 1, **{"eval/return_mean": NAN, "train/critic_loss": INF}))
    assert {name for name, _ in events(tmp_path / "tensorboard" / "seed_7")} == {
        "perf/env_steps_per_second",
        "perf/updates_per_second",
    }
    assert capfd.readouterr() == ("", "")


def test_weights_and_biases_gets_the_mean_the_members_and_the_config(tmp_path, offline):
    with loggers.WeightsAndBiases(tmp_path, "a-project", {"agent": {"gamma": 0.875}}) as board:
        board.epoch(rows(1, 4))
    stored = stored_by_wandb(tmp_path)
    expected = (b"a-project", b"gamma", b"0.875", b"eval/return_mean", b"11.5", b"member_3/eval/return_mean", b"13")
    assert [text for text in expected if text not in stored] == []


def test_a_single_member_is_logged_once(tmp_path, offline):
    with loggers.WeightsAndBiases(tmp_path, "a-project", {}) as board:
        board.epoch(rows(1, 1))
    stored = stored_by_wandb(tmp_path)
    assert b"eval/return_mean" in stored
    assert b"member_0" not in stored


def test_without_a_terminal_the_first_and_the_last_epoch_are_lines():
    shown = displayed(3, range(4))
    assert shown.startswith("A title\n")
    assert "epoch 0/3 | 0 env steps | IQM return 0.5\n" in shown
    assert "epoch 3/3 | 0 s left | 300 env steps | IQM return 30.5 | 1,234 env-steps/s | 56 updates/s\n" in shown


def test_a_fast_run_does_not_flood_the_log():
    assert len(displayed(1000, range(1001)).splitlines()) < 10


def test_a_slow_run_shows_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(console.Display, "LINE_SECONDS", 0.0)
    assert "epoch 2/4" in displayed(4, range(5))


@pytest.mark.parametrize("first", [0, 90])
def test_the_time_left_counts_the_epochs_seen(first, monkeypatch):
    """Ten epochs at 2 s each are left at the 90th of 100, whether the run began there or not."""
    moments = iter(range(0, 1000, 2))
    monkeypatch.setattr(console.Display, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(moments))
    shown = displayed(100, range(first, 96)).splitlines()
    assert shown[-1].startswith("epoch 95/100 | 10 s left | ")
    assert "left" not in next(line for line in shown if line.startswith(f"epoch {first}/"))


class Terminal(io.StringIO):
    """A standard error that can be redrawn."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_70_columns_show_the_whole_status_in_two_lines(terminal):
    with contextlib.redirect_stderr(terminal), console.Display("A title", 100) as display:
        for epoch in (0, 100):
            display.epoch(rows(epoch, env_steps=123_456_789_012, **{"perf/env_steps_per_second": 1e9}))
    lines = terminal.getvalue().splitlines()
    assert any("0 s left | 123,456,789,012 env steps" in line for line in lines)
    assert any("updates/s" in line for line in lines)


def test_the_display_says_what_is_compiled_and_how_long_that_took_the_last_time(terminal, capsys):
    for seconds, expected in (
        (None, "compiling init, epoch"),
        (97.3, "compiling init, epoch (last time 97 s for all)"),
    ):
        with console.Display("title", 9) as display:
            for programs in (["init", "epoch"], ["epoch"], []):
                display.compiling(programs, seconds)
        assert capsys.readouterr().err.splitlines() == ["title", expected]
    with contextlib.redirect_stderr(terminal), console.Display("title", 9) as display:
        display.compiling(["init", "epoch"], 97.3)
        display.compiling(["epoch"], 97.3)
    assert "compiling epoch (last time 97 s for all)" in terminal.getvalue()


def test_a_spinner_moves_while_a_run_compiles(terminal):
    with contextlib.redirect_stderr(terminal), console.Display("A title", 100):
        end = time.monotonic() + 20
        while len(frames := set(re.findall("[⠀-⣿]", terminal.getvalue()))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
    assert len(frames) >= 2


def test_quiet_is_silent():
    assert displayed(2, range(3), quiet=True) == ""


def test_the_table_has_a_line_per_member(capsys):
    console.print_table("A title", [{"seed": 7, "return": -1.234567e-5}, {"seed": 8, "return": NAN}], "in short: good")
    lines = capsys.readouterr().out.splitlines()
    assert "A title" in lines[0]
    assert any("7" in line and "-1.2346e-05" in line for line in lines)
    assert any("8" in line and "not finite" in line for line in lines)
    assert lines[-1] == "in short: good"


def test_a_member_that_diverged_is_noted_once(capsys):
    with console.Display("title", 9) as display:
        for epoch in range(4):
            found = rows(epoch)
            if epoch >= 2:
                found[1] |= {"diverged_by": "observation", "diverged_at": 1_234}
            display.epoch(found)
    notes = [line for line in capsys.readouterr().err.splitlines() if "diverged" in line]
    assert notes == [
        "member with seed 8 diverged at env step 1,234: an observation was not finite; its last finite state is kept"
    ]


@pytest.fixture
def without_key(tmp_path, monkeypatch):
    """A user who has never logged in to Weights & Biases."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()
    yield
    wandb.teardown()


def test_wandb_without_a_key_is_refused_before_anything_is_written(without_key, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    for command, flags in (("train", []), ("sweep", ["--population.sweep", "{agent.batch_size: [4, 8]}"])):
        result = call(
            command,
            tmp_path / "tiny.yaml",
            *flags,
            "--reporting.wandb",
            "true",
            "--run-dir",
            tmp_path / "run",
            "--quiet",
        )
        assert (
            refused(result, "reporting.wandb is true", "has no API key; run `wandb login`, or set WANDB_MODE=offline")
            == []
        )
    assert not (tmp_path / "run").exists()


def test_a_server_of_wandb_that_does_not_answer_is_named(monkeypatch):
    def fail(**_):
        raise wandb.errors.CommError("Failed to authenticate with http://127.0.0.1:9.\nMore lines")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", fail)
    with pytest.raises(
        ValueError, match=r"cannot be used: Failed to authenticate with http://127.0.0.1:9; run `wandb l"
    ):
        loggers.check_wandb()


def test_an_evaluation_that_is_not_finite_is_noted_until_it_is_finite(capsys):
    with console.Display("title", 9) as display:
        for epoch in range(6):
            found = rows(epoch)
            found[1]["unmeasured_by"] = "action of the policy" if epoch in (1, 2, 4) else ""
            display.epoch(found)
    notes = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    sentence = "an action of the policy was not finite in the evaluation of the member with seed 8"
    assert notes == [f"warning: after epoch {epoch}, {sentence}" for epoch in (1, 4)]
