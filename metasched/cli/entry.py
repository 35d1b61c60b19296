"""Runs one command, and converts errors and signals to an exit code and a line on stderr."""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
import warnings
from collections.abc import Sequence

from metasched.cli.experiment import imports_of
from metasched.cli.parser import parse
from metasched.cli.signals import Terminated, stop_on_signals
from metasched.core.errors import MetaschedError, printable
from metasched.core.imports import allow
from metasched.runs.ranks import serve, serves

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        the exit code: 0 for success; 2 for a mistake of the user or a failed write; 1 for a run that stopped because of
        non-finite numbers; 130 if interrupted; 143 if terminated; 141 if nobody reads its output any more. All but 0
        come with one line on stderr; 141 only where there is a run to go on with.
    """
    arguments = argparse.Namespace(go_on=None)

    def say(stopped: type[KeyboardInterrupt]) -> None:
        how = "terminated" if issubclass(stopped, Terminated) else "interrupted"
        _tell(f"metasched: {how}{f'; go on with `{arguments.go_on}`' if arguments.go_on else ''}")

    with warnings.catch_warnings(), stop_on_signals(say):
        warnings.showwarning = lambda message, *_: _tell(f"metasched: warning: {printable(str(message))}")
        try:
            given = sys.argv[1:] if argv is None else argv
            arguments.words = list(given)
            allow(imports_of(given))
            command = parse(given, arguments)
            if not serves():
                command.run(arguments)
            elif command.spread:
                serve()
        except MetaschedError as error:
            for line in str(error).splitlines():
                _tell(f"metasched: error: {line}")
            return error.exit_code
        except BrokenPipeError:  # `metasched list | head`: whoever read the output has gone
            if not _unread():
                raise  # of another pipe, such as that of a worker
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            if arguments.go_on:
                _tell(f"metasched: nobody reads the output any more; go on with `{arguments.go_on}`")
            return 141
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            where = printable(str(error.filename or "output"))
            _tell(f"metasched: error: {where}: cannot be written ({error.strerror})")
            return 2
        except KeyboardInterrupt as stopped:
            say(type(stopped))
            return 143 if isinstance(stopped, Terminated) else 130
    return 0


def _unread() -> bool:
    """Whether standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _tell(line: str) -> None:
    if not serves():
        print(line, file=sys.stderr)
