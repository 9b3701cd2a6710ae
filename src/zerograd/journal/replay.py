"""From a journal back to weights: the steps are done again, bit for bit, many of them in one pass over each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zerograd.journal.steps import Record, Restore
from zerograd.update import Memory, Skip, Step

_Path = tuple[Step, "_Path"] | None
"""The last step of a path from the base, and the path to it."""

STEPS_AT_A_TIME = 1024


def path(records: Iterable[Record], at: int | None = None) -> list[Step]:
    """The steps that lead from the base to the weights after `at` steps, or after all; steps that were gone back on are
    left out.

    Raises ValueError when there were not so many steps.
    """
    here: _Path = None
    after: list[_Path] = [here]  # so many steps
    for record in records:
        if at is not None and len(after) == at + 1:
            break
        if isinstance(record, Restore):
            here = after[record.step]
        elif isinstance(record, (Step, Skip)):
            here = (record, here) if isinstance(record, Step) else here
            after.append(here)
    if at is not None and len(after) <= at:
        raise ValueError(f"step {at} is asked for, and the journal has {len(after) - 1} steps; ask for one that it has")
    steps = []
    while here is not None:
        step, here = here
        steps.append(step)
    return steps[::-1]


def replay(memory: Memory, steps: Sequence[Step], listen: Callable[[float], None] = lambda done: None) -> None:
    """Do to the spaces of a memory what steps say. listen: is told the share that is done.

    An interrupt leaves the spaces between two states: their former values are the caller's to load again.
    """
    work, done = memory.values * max(1, len(steps)), 0
    for first in range(0, len(steps), STEPS_AT_A_TIME):
        some = steps[first : first + STEPS_AT_A_TIME]

        def count(values: int, steps: int = len(some)) -> None:
            nonlocal done
            done += values * steps
            listen(done / work)

        memory.follow(some, count)
