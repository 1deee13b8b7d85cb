"""The process that a command runs in: what is set for the command's time and restored after it, since `cli.main` may be
called from Python."""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
    path, streams = [*sys.path], (sys.stdout, sys.stderr)
    # A notebook's kernel hands its backend, which other environments do not have, on to its subprocesses.
    changed = {name: value for name, value in variables.items() if name not in os.environ} | {"MPLBACKEND": "agg"}
    before = {name: os.environ.get(name) for name in changed}
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    os.environ |= changed
    # Python has none where the descriptor was closed.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in streams)  # noqa: SIM115
    handlers = [_escape(stream) for stream in (sys.stdout, sys.stderr)]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            yield
    finally:
        for stream, handler in zip((sys.stdout, sys.stderr), handlers, strict=True):
            _escape(stream, handler)
        sys.stdout, sys.stderr = streams
        sys.path[:] = path
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reopen_closed() -> None:
    """Opens standard streams that are closed on the null device, or the next file would be opened in their place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one


def _escape(stream: TextIO, handler: str | None = "backslashreplace") -> str | None:
    """Sets what a stream does with what it cannot encode, and returns what it did before."""
    before = getattr(stream, "errors", None)
    if handler and hasattr(stream, "reconfigure"):
        with suppress(ValueError):  # it is closed
            stream.reconfigure(errors=handler)
    return before
