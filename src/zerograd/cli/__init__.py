"""The command line: `zerograd VERB`, one file a verb.

What is wrong with the input ends it with one line and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from zerograd import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    from zerograd.cli import tune

    parser = argparse.ArgumentParser(prog="zerograd", description="Zeroth-order optimisation with evaluations alone.")
    parser.add_argument("--version", action="version", version=f"zerograd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    tune.add(verbs)
    chosen = parser.parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
    except (ValueError, FileNotFoundError) as error:
        print(f"zerograd {chosen.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"zerograd {chosen.verb}: interrupted before there was anything to keep", file=sys.stderr)
        return 130
    return code
