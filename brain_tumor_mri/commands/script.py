"""How the command line and the scripts beside the library end: one line for people, and an exit status for programs."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UserError, first_line, missing_package
from ..images.quiet import quiet_decoders


def run_script(
    doc: str,
    add_arguments: Callable[[argparse.ArgumentParser], Any],
    work: Callable[[argparse.Namespace], Any],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse a script's flags, do its work, and return its exit status; the first line of ``doc`` describes it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args(argv)
    quiet_decoders()
    return exit_status(parser.prog, lambda: work(args))


def exit_status(name: str, work: Callable[[], Any]) -> int:
    """Do the work; its own status or 0, 2 the input is wrong, 130 stopped by Ctrl-C, 1 the output cannot be written."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have what the console's encoding lacks
    try:
        status = work()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (told := missing_package(error)) is None:
            raise
        print(f"{name}: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{name}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except OSError as error:
        # the reader (`| head`) has gone, or the disk is full
        if not isinstance(error, BrokenPipeError):
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            print(f"{name}: the output cannot be written: {first_line(error)}", file=sys.stderr)
        # without this Python complains once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
