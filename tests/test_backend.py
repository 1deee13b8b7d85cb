"""What JAX's variables prevent; where JAX must read them, in a process of its own, as it reads them once."""

import os
import re
import subprocess
import sys

import jax
import pytest
from helpers import TINY, call, refused, slow

from jaxddpg.config import ConfigError
from jaxddpg.runs import backend, cache


def ran(arguments, **variables):
    """The exit code of a command under these variables, and what it wrote to standard error."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-m", "jaxddpg", *map(str, arguments)]
    done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("name", "value", "fragments"),
    [
        slow("JAX_PLATFORMS", "cuda", ["JAX found no devices", "JAX_PLATFORMS=cuda", "pip install"]),
        slow(
            "JAX_PLATFORMS",
            "nonsense",
            ["JAX found no devices: Unable to initialize backend 'nonsense'"],
        ),
        slow("JAX_NUM_CPU_DEVICES", "0", ["JAX found no devices", "correct or unset JAX_NUM_CPU_DEVICES=0"]),
        ("JAX_NUM_CPU_DEVICES", "x", ["JAX failed to import", "jax_num_cpu_devices; fix or unset that variable"]),
        slow("JAX_DISABLE_JIT", "1", ["JAX_DISABLE_JIT is True, but a run is compiled ahead of time; unset it"]),
    ],
)
def test_a_variable_that_prevents_a_run_is_named(name, value, fragments, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = ["train", tmp_path / "tiny.yaml", "--quiet", "--run-dir", tmp_path / "run"]
    code, err = ran(command, **{name: value})
    assert (code, len(err.splitlines())) == (2, 1), err
    assert err.startswith("error: JAX")
    assert [fragment for fragment in fragments if fragment not in err] == []
    assert not (tmp_path / "run").exists()


def without_a_device(*_):
    raise RuntimeError("Unable to initialize backend 'cuda'")


@pytest.mark.parametrize("command", ["train tiny.yaml --quiet --run-dir run", "check"])
def test_a_command_that_finds_no_device_names_the_variable(command, tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for innocent in ("CUDA_HOME", "JAX_DEBUG_NANS"):
        monkeypatch.setenv(innocent, "0")
    monkeypatch.setattr(jax, "devices", without_a_device)
    fragments = ["JAX found no devices: Unable to initialize backend 'cuda'", "JAX_PLATFORMS=cuda", "pip install"]
    said = call(*command.split())
    assert refused(said, *fragments) == []
    assert "CUDA_HOME" not in said[2]
    assert "DEBUG" not in said[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_check_names_it_too():
    code, err = ran(["check"], JAX_PLATFORMS="cuda")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "JAX_PLATFORMS=cuda" in err


@pytest.mark.parametrize(
    ("set_up", "name"),
    [
        (lambda: jax.enable_x64(True), "JAX_ENABLE_X64"),
        (lambda: jax.numpy_dtype_promotion("strict"), "JAX_NUMPY_DTYPE_PROMOTION"),
        (lambda: jax.transfer_guard_host_to_device("disallow"), "JAX_TRANSFER_GUARD_HOST_TO_DEVICE"),
        (lambda: jax.disable_jit(), "JAX_DISABLE_JIT"),
        (lambda: jax.no_tracing(True), "JAX_NO_TRACING"),
    ],
)
def test_what_a_run_cannot_be_computed_with_is_refused(set_up, name, monkeypatch):
    with set_up(), pytest.raises(ConfigError) as error:
        backend.start()
    (fault,) = error.value.errors
    assert fault.startswith(f"{name} is ")
    assert re.search(f"; set {name.lower()} to (False|standard|allow)$", fault)
    monkeypatch.setenv(name, "1")
    with set_up(), pytest.raises(ConfigError, match=r"; unset it$"):
        backend.start()
    backend.start()


@pytest.mark.parametrize(
    ("set_up", "warned", "devices"),
    [
        ("jax.numpy.zeros(1)", True, 1),
        slow("", False, 3),
        slow("jax.config.update('jax_num_cpu_devices', 2)", False, 2),
        slow("jax.config.update('jax_num_cpu_devices', 2); jax.numpy.zeros(1)", False, 2),
    ],
    ids=["started", "untouched", "set", "set and started"],
)
def test_a_jax_that_has_started_with_fewer_devices_is_warned_of(set_up, warned, devices):
    """What the user set stays."""
    script = f"""
import os, warnings
os.sched_getaffinity = lambda _: range(3)
import jax
{set_up}
before = jax.config.jax_num_cpu_devices
from jaxddpg.runs import backend, cache
with warnings.catch_warnings(record=True) as caught:
    backend.start()
sentences = [str(one.message) for one in caught if "the CPU backend was already initialized" in str(one.message)]
assert len(sentences) == {int(warned)} and all("JAX_NUM_CPU_DEVICES=3" in one for one in sentences), sentences
assert jax.local_device_count() == {devices}
assert not before >= 0 or jax.config.jax_num_cpu_devices == before
"""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    subprocess.run([sys.executable, "-c", script], check=True, env=kept)


def test_from_python_programs_are_kept_for_the_next_process(tmp_path):
    """Enabled after something was compiled already."""
    program = (
        "import sys, jax, jaxddpg\n"
        "jax.jit(lambda x: x + 1)(1.0)\n"
        "jaxddpg.enable_compilation_cache(sys.argv[1])\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "jax.jit(lambda x: x @ x)(jax.numpy.ones((3, 3)))\n"
        "print(hits.count('/jax/compilation_cache/cache_hits') > 0)\n"
    )
    environ = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    found = [
        subprocess.run(
            [sys.executable, "-c", program, tmp_path], env=environ, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert found == ["False", "True"]
    assert any(tmp_path.iterdir())


def test_the_seconds_of_compiling_are_kept_by_environment(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "new"))
        assert cache.compile_seconds("playground:A") is None
        cache.keep_compile_seconds("playground:A", 97.34)
        assert cache.compile_seconds("playground:A") == 97.3
        assert cache.compile_seconds("playground:B") is None
        (file,) = (tmp_path / "new" / "seconds").iterdir()
        file.write_text("damaged")
        assert cache.compile_seconds("playground:A") is None
        jax.config.update("jax_compilation_cache_dir", None)
        cache.keep_compile_seconds("playground:A", 1.0)
        assert cache.compile_seconds("playground:A") is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_of_python_is_that_of_the_commands():
    program = (
        "import jax, jaxddpg\n"
        "from jaxddpg.runs import cache\n"
        "jaxddpg.enable_compilation_cache()\n"
        "assert jax.config.jax_compilation_cache_dir == cache.variables()['JAX_COMPILATION_CACHE_DIR']\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
