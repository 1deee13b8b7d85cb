"""Breaks copies of the package, each in one way, and sees that the tests that should notice it fail.

python tests/mutations/run.py [NAME ...]

The ways stand in `mutations.yaml`. Exit code 1: a test fails without any change, a change is not noticed, or the text
that it replaces is no longer there. The working tree stays as it is, but for the compiled programs that are kept in
`.pytest_cache/jax`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("jaxddpg", "tests", "configs", "pyproject.toml")
JOBS = min(4, os.cpu_count() or 1)
"""So many run side by side."""


class Mutation(NamedTuple):
    """One way to break the package."""

    name: str
    law: str
    """What must hold, and no longer does."""
    file: str
    old: str
    """What is replaced in the file, where it stands exactly once."""
    new: str
    tests: list[str]
    """The pytest node ids of those of which at least one must fail."""

    def applied(self, text: str) -> str | None:
        """The file's text with the change; None where it does not apply."""
        return text.replace(self.old, self.new) if text.count(self.old) == 1 and self.new != self.old else None


def read() -> list[Mutation]:
    """All mutations, in the order of their file."""
    return [Mutation(**entry) for entry in yaml.safe_load(Path(__file__).with_name("mutations.yaml").read_text())]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the package and its tests in a temporary directory, which shares the compiled programs."""
    cache = ROOT / ".pytest_cache" / "jax"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutations") as name:
        copy = Path(name)
        for part in COPIED:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, copy)
        (copy / ".pytest_cache").mkdir()
        (copy / ".pytest_cache" / "jax").symlink_to(cache)
        yield copy


def tested(copy: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What pytest says of tests in a copy, until one fails."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


def noticed(result: subprocess.CompletedProcess[str]) -> bool:
    """Whether a test failed; one that cannot be collected, or whose fixtures cannot be made, is not counted."""
    return result.returncode == 1 and re.search(r"^[1-9]\d* failed\b", result.stdout, re.MULTILINE) is not None


class Outcome(NamedTuple):
    """What came of a mutation."""

    said: str
    seconds: float
    output: str = ""
    """What explains it."""


def tried(mutation: Mutation) -> Outcome:
    """Breaks a copy, and runs the tests there."""
    start = time.perf_counter()
    with copied() as copy:
        file = copy / mutation.file
        text = mutation.applied(file.read_text())
        if text is None:
            return Outcome("NO LONGER APPLIES", 0.0, f"{mutation.file} does not hold exactly once:\n{mutation.old}\n")
        file.write_text(text)
        result = tested(copy, mutation.tests)
    seconds = time.perf_counter() - start
    return Outcome("seen", seconds) if noticed(result) else Outcome("NOT SEEN", seconds, result.stdout[-3000:])


def unchanged(tests: Sequence[str]) -> Outcome:
    """Runs tests without any change."""
    start = time.perf_counter()
    with copied() as copy:
        result = tested(copy, tests)
    said = "FAIL" if result.returncode else "pass"
    return Outcome(said, time.perf_counter() - start, result.stdout + result.stderr if result.returncode else "")


def report(name: str, outcome: Outcome, tests: Sequence[str]) -> None:
    """Prints a line, and what explains it."""
    print(f"{name:18} {outcome.said:17} {outcome.seconds:6.1f} s  {' '.join(tests)}")
    print(outcome.output, end="", flush=True)


def chosen(arguments: Sequence[str] | None) -> list[Mutation]:
    """The mutations that the command line names."""
    mutations = {mutation.name: mutation for mutation in read()}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(mutations)}; by default all")
    names = parser.parse_args(arguments).names or [*mutations]
    if unknown := [name for name in names if name not in mutations]:
        parser.error(f"there is no {', '.join(unknown)}; use {', '.join(mutations)}")
    return [mutations[name] for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; one line is printed per mutation."""
    mutations, start = chosen(arguments), time.perf_counter()
    tests = [*dict.fromkeys(test for mutation in mutations for test in mutation.tests)]
    parts = [part for first in range(JOBS) if (part := tests[first::JOBS])]
    seen = 0
    threads = ThreadPoolExecutor(JOBS)
    try:
        sound = [*threads.map(unchanged, parts)]
        for part, outcome in zip(parts, sound, strict=True):
            report("(unchanged)", outcome, [f"{len(part)} tests"])
        if any(outcome.said != "pass" for outcome in sound):
            return 1
        for mutation, outcome in zip(mutations, threads.map(tried, mutations), strict=True):
            report(mutation.name, outcome, mutation.tests)
            seen += outcome.said == "seen"
    finally:
        threads.shutdown(cancel_futures=True)
    report("(all)", Outcome(f"{seen} of {len(mutations)} seen", time.perf_counter() - start), [])
    return int(seen < len(mutations))


if __name__ == "__main__":
    sys.exit(main())
