"""The command line: `zerograd VERB`, one file a verb.

A wrong input ends a command with one line and exit code 2.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from zerograd.cli import plain_characters
from zerograd.machine import environment
from zerograd.version import __version__


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong flag in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    environment.prepare()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=plain_characters.NAME)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the screen shows zerograd's own progress
    from zerograd.cli import bench, eval, journal, plan, predict, replay, report, ship, tune
    from zerograd.errors import SelfCheckFailed, UnresolvedOperation

    parser = Parser(prog="zerograd", description="Zeroth-order optimisation: training with forward passes only.")
    parser.add_argument("--version", action="version", version=f"zerograd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in (tune, eval, predict, plan, report, replay, journal, ship, bench):
        verb.add(verbs)
    parsed = parser.parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except ModuleNotFoundError as error:
        return _report(parsed.verb, f"{error.name} is not installed; pip install 'zerograd[text]'", 2)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, UnresolvedOperation, SelfCheckFailed) as error:
        return _report(parsed.verb, str(error), 2)
    except KeyboardInterrupt as error:
        return _report(parsed.verb, str(error) or "interrupted before anything was saved", 130)
    return code


def _report(verb: str, message: str, code: int) -> int:
    print(f"zerograd {verb}: {' '.join(message.split())}", file=sys.stderr)
    return code
