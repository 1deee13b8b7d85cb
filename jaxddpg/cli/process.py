"""The process that a command runs in: what is set for the command's time and restored after it, since `cli.main` may be
called from Python."""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO


@contextmanager
def prepared(variables: Mapping[str, str]) -> Iterator[None]:
    """Prepares the process for a command.

    `variables` are set where the user has not set them. Figures are drawn without a display. Warnings are one line each
    on standard error. Names that the terminal cannot show are escaped. The working directory is on the path, for
    modules named in a config.

    Raises:
        FileNotFoundError: the working directory no longer exists.
    """
    _reopen_closed()
    path = [*sys.path]
    # A notebook's kernel hands its backend, which other environments do not have, on to its subprocesses.
    changed = {name: value for name, value in variables.items() if name not in os.environ} | {"MPLBACKEND": "agg"}
    before = {name: os.environ.get(name) for name in changed}
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    os.environ |= changed
    try:
        with (
            open(os.devnull, "w") as nowhere,  # Python has no stream where the descriptor was closed
            redirect_stdout(sys.stdout or nowhere) as out,
            redirect_stderr(sys.stderr or nowhere) as err,
            _escaping(out),
            _escaping(err),
            warnings.catch_warnings(),
        ):
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            yield
    finally:
        sys.path[:] = path
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # which the command may have removed
            else:
                os.environ[name] = value


def _reopen_closed() -> None:
    """Opens standard streams that are closed on the null device, or the next file would be opened in their place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one


@contextmanager
def _escaping(stream: TextIO) -> Iterator[None]:
    """Has a stream escape what it cannot encode."""
    before = getattr(stream, "errors", None)
    if not before or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(ValueError):  # it was closed
            stream.reconfigure(errors=before)
