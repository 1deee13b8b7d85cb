"""The process that a command runs in: what is set for the command's time and restored after it, since `cli.main` may be
called from Python."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast


@contextmanager
def prepared(variables: Mapping[str, str]) -> Iterator[None]:
    """Prepares the process for a command.

    `variables` are set where the user has not set them. Figures are drawn without a display. Warnings are one line each
    on standard error. Names that the terminal cannot show are escaped. What nobody reads any more is dropped. JAX does
    not log failed callbacks, which the command reports in a sentence. The working directory is on the path, for modules
    named in a config.

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
            redirect_stdout(lasting(sys.stdout or nowhere)) as out,
            redirect_stderr(lasting(sys.stderr or nowhere)) as err,
            _without_logs_of_callbacks(),
            _escaping(out),
            _escaping(err),
            warnings.catch_warnings(),
        ):
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            try:
                yield
            finally:
                with suppress(ValueError):  # it was closed
                    out.flush()  # or Python does it at exit, and fails where the reader has gone
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


class _Lasting:
    """A stream that drops what is written once its reader has gone, as that of `| head -1` or a closed terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)  # also for what is left in the buffer
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def lasting(stream: TextIO) -> TextIO:
    """A stream whose reader may go away before the end."""
    return cast(TextIO, _Lasting(stream))


@contextmanager
def _without_logs_of_callbacks() -> Iterator[None]:
    logger = logging.getLogger("jax._src.callback")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


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
