"""The command line. Help and configuration errors import neither JAX nor any environment."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence

from jaxddpg.cli import process
from jaxddpg.cli.commands import print_errors, print_failure
from jaxddpg.cli.flags import joined
from jaxddpg.cli.parser import make_parser
from jaxddpg.config import ConfigError
from jaxddpg.runs import cache


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 failed, 2 bad input, 128 + n stopped by signal n."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow
        import argcomplete

        argcomplete.autocomplete(make_parser(), print_suppressed=True, exclude=["--child"])
    try:
        with process.prepared(cache.variables()):
            return _run(sys.argv[1:] if arguments is None else arguments)
    except FileNotFoundError:
        print("error: the working directory no longer exists; change to one that does", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str]) -> int:
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)  # JAX loses an exception raised in its callbacks
    try:
        options = make_parser().parse_args(joined(arguments), argparse.Namespace(arguments=arguments))
        return options.command(options)
    except ConfigError as error:
        return print_errors(error)
    except OSError as error:
        remedy = "; correct its permissions" if error.errno == errno.EACCES else ""
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}{remedy}", file=sys.stderr)
        return 1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE) else 2
    except RuntimeError as error:  # JAX's, which may not be imported
        if "RESOURCE_EXHAUSTED" in str(error):
            print("error: out of memory; reduce the size of the request", file=sys.stderr)
            return 2
        from jaxddpg.config.user_code import callback_error

        if not (called_back := callback_error(error)):
            raise
        return print_failure(f"the environment failed in a callback: {called_back}")
    except KeyboardInterrupt:  # raised by code of the user
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, previous)
