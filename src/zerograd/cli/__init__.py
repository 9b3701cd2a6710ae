"""The command line: `zerograd VERB`, one file a verb.

What is wrong with the input ends it with one line and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from zerograd.machine import environment
from zerograd.version import __version__


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    environment.prepare()
    os.environ.setdefault("TQDM_DISABLE", "1")  # the screen is for our own progress
    from zerograd.cli import bench, eval, journal, plan, predict, replay, report, ship, tune
    from zerograd.evaluate.self_check import SelfCheckFailed
    from zerograd.evaluate.trace import UnresolvedOperation

    parser = Parser(prog="zerograd", description="Zeroth-order optimisation with evaluations alone.")
    parser.add_argument("--version", action="version", version=f"zerograd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in (tune, eval, predict, plan, report, replay, journal, ship, bench):
        verb.add(verbs)
    chosen = parser.parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
    except ModuleNotFoundError as error:
        return _say(chosen.verb, f"{error.name} is not installed; pip install 'zerograd[text]'", 2)
    except BrokenPipeError:  # whoever read what is printed has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, UnresolvedOperation, SelfCheckFailed) as error:
        return _say(chosen.verb, str(error), 2)
    except KeyboardInterrupt as error:
        return _say(chosen.verb, str(error) or "interrupted before there was anything to keep", 130)
    return code


def _say(verb: str, what: str, code: int) -> int:
    print(f"zerograd {verb}: {' '.join(what.split())}", file=sys.stderr)
    return code
