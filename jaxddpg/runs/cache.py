"""Where JAX keeps what it compiles, so that a program is compiled once on a machine. Needs no JAX."""

import hashlib
import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

import platformdirs


def directory() -> Path:
    """The directory for programs of this user, processor and version of JAX."""
    # A program for one processor may not run on another, which may share the directory.
    description = Path("/proc/cpuinfo")
    lines = description.read_text().splitlines() if description.exists() else []
    processor = [
        platform.machine(),
        platform.processor(),
        *(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))),
    ]
    name = hashlib.sha256("".join(sorted(set(processor))).encode()).hexdigest()[:8]
    return platformdirs.user_cache_path("jaxddpg") / f"jax-{importlib.metadata.version('jax')}-{name}"


def variables() -> dict[str, str]:
    """The variables that have a JAX which is not yet imported use that directory."""
    return {"JAX_COMPILATION_CACHE_DIR": str(directory()), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def entries() -> int:
    """The number of files in JAX's cache directory, 0 if there is none."""
    cache = _in_use()
    return len(os.listdir(cache)) if cache and cache.is_dir() else 0


def compile_seconds(program: str) -> float | None:
    """How long the programs of a run took to compile when the cache last held none of them; None if unknown."""
    file = _seconds_file(program)
    try:
        return float(file.read_text()) if file else None
    except (OSError, ValueError):
        return None


def keep_compile_seconds(program: str, seconds: float) -> None:
    """Stores it in JAX's cache directory, if one is set."""
    if file := _seconds_file(program):
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{seconds:.1f}\n")


def _seconds_file(program: str) -> Path | None:
    name = "".join(letter if letter.isalnum() else "-" for letter in program)
    cache = _in_use()
    return cache / "seconds" / f"{name}.txt" if cache else None


def _in_use() -> Path | None:
    """The cache directory of this process, if it has one on a local file system."""
    import jax

    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return Path(cache) if cache and "://" not in cache else None


def enable_compilation_cache(path: str | Path | None = None) -> None:
    """Has JAX keep what it compiles from now on, as the commands do, and reuse it in other processes.

    Args:
        path: a directory; None is that of the commands, in the user's cache directory.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()  # it is set up at the first compilation, which may have been
    jax.config.update("jax_compilation_cache_dir", str(path or directory()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
