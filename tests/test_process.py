"""The command in all kinds of surroundings, some of which need a process of their own, and what it leaves to a caller
in Python."""

import contextlib
import io
import os
import pty
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import TINY, call

from jaxddpg.cli import process
from jaxddpg.cli.main import main
from jaxddpg.runs import start as start_module


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """A directory with a tiny experiment and a finished run of it, under names beyond ASCII."""
    directory = tmp_path_factory.mktemp("surroundings")
    (directory / "tiny.yaml").write_text(TINY)
    assert call("train", directory / "tiny.yaml", "--run-dir", directory / "läuft", "--quiet")[0] == 0
    return directory


def shell(command, directory, **variables):
    return subprocess.run(
        f"'{sys.executable}' -m jaxddpg {command}",
        shell=True,
        cwd=directory,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_notebooks_backend_does_not_matter(surroundings):
    """It is handed on to subprocesses, whose environment may not have it."""
    done = shell("plot läuft", surroundings, MPLBACKEND="module://not_installed.backend_inline")
    assert (done.returncode, done.stdout, done.stderr) == (0, "läuft/learning_curve.png\n", "")


def test_names_that_the_terminal_cannot_show_are_escaped(surroundings, monkeypatch):
    monkeypatch.chdir(surroundings)
    written = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(written, encoding="ascii")) as out:
        assert main(["plot", "läuft"]) == 0
        out.flush()
    assert written.getvalue() == b"l\\xe4uft/learning_curve.png\n"


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(closed, surroundings):
    """A file opened in their place would be written into by whatever prints."""
    run = f"run_{len(closed)}"
    done = shell(f"train tiny.yaml --run-dir {run} {closed}", surroundings)
    assert done.returncode == 0
    first = (surroundings / run / "config.yaml").read_text().splitlines()[0]
    assert first.startswith("environment:")
    assert (surroundings / run / "metrics.jsonl").read_text().startswith('{"epoch": 0')


def test_a_working_directory_that_is_gone_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path}/gone && rmdir ../gone && '{sys.executable}' -P -m jaxddpg plot run"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, env=os.environ | PACKAGE, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the working directory no longer exists; change to one that does\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_goes_on_when_its_reader_has_gone(stream, surroundings, monkeypatch):
    """As in `jaxddpg train CONFIG | head -1`: what is no longer read is dropped."""
    monkeypatch.chdir(surroundings)
    read, write = os.pipe()
    os.close(read)
    # Without a buffer each word goes into the pipe at once.
    with io.TextIOWrapper(open(write, "wb", buffering=0), write_through=True) as broken:
        monkeypatch.setattr(sys, stream, broken)
        assert main(["train", "tiny.yaml", "--run-dir", f"unread_{stream}"]) == 0
    assert (surroundings / f"unread_{stream}" / "summary.json").is_file()


def test_what_is_left_in_a_buffer_is_dropped_when_its_reader_has_gone(monkeypatch):
    """Or Python would fail at exit."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])


def test_an_error_of_writing_is_an_error_where_a_reader_is_there(monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["schema"]) == 1


PACKAGE = {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}


def read_to_the_end(descriptor):
    """What a terminal shows until its other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while chunk := os.read(descriptor, 4096):
            shown += chunk
    return shown


@pytest.mark.parametrize(("term", "redraws"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_progress_is_shown_on_every_terminal(term, redraws, surroundings, monkeypatch):
    """As a bar where a line can be redrawn, else as lines."""
    monkeypatch.chdir(surroundings)
    monkeypatch.setenv("TERM", term)
    parent, child = pty.openpty()
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(read_to_the_end, parent)
        with (
            open(child, "w") as terminal,
            contextlib.redirect_stderr(terminal),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            code = main(["train", "tiny.yaml", "--run-dir", f"shown_{term}"])
        shown = reading.result()
    os.close(parent)
    assert code == 0
    assert (b"\x1b[" in shown) == redraws
    assert (b"epoch 1/1 | " in shown) == (not redraws)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_in_a_pipe_progress_is_lines_whatever_colors_are_asked_for(variable, surroundings):
    done = shell(f"train tiny.yaml --run-dir piped_{variable}", surroundings, **{variable: "1"})
    assert done.returncode == 0
    assert "epoch 1/1 | " in done.stderr
    assert "\x1b[2K" not in done.stderr  # erases a line to draw it again


def test_a_command_may_remove_a_variable_that_was_set_for_it(monkeypatch):
    monkeypatch.delenv("SOME_VARIABLE", raising=False)
    with process.prepared({"SOME_VARIABLE": "1"}):
        assert os.environ.pop("SOME_VARIABLE") == "1"
    assert "SOME_VARIABLE" not in os.environ


def test_a_caller_in_python_finds_everything_as_it_was(surroundings, monkeypatch):
    monkeypatch.chdir(surroundings)
    monkeypatch.setenv("MPLBACKEND", "pdf")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name)
    import jax

    during, whole = [], start_module.run

    def watched(*arguments, **settings):
        during.append((jax.config.jax_debug_nans, jax.config.jax_debug_key_reuse))
        with jax.debug_nans(False), jax.debug_key_reuse(False):  # with them each program is traced again
            return whole(*arguments, **settings)

    monkeypatch.setattr(start_module, "run", watched)

    def state():
        debugging = (jax.config.jax_debug_nans, jax.config.jax_debug_key_reuse)
        streams = (sys.stdout, sys.stdout.errors, sys.stderr, sys.stderr.errors)
        return warnings.showwarning, [*warnings.filters], [*sys.path], dict(os.environ), debugging, streams

    before = state()
    assert call("plot", "läuft", "--output", "curves.png")[0] == 0
    assert call("train", "tiny.yaml", "--agent.gamma", "2")[0] == 2
    assert call("train", "tiny.yaml", "--debug", "--run-dir", "debugged", "--quiet")[0] == 0
    assert during == [(True, True)]
    assert call("--version")[0] == 0
    assert state() == before
