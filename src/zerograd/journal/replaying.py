"""From a journal back to weights: what the steps did is done again, bit for bit, many steps in a pass over each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zerograd.directions.family import Family
from zerograd.journal.format import Record, Restore
from zerograd.spaces.weights import Slot
from zerograd.update.apply import Skip, Step
from zerograd.update.state import State

_Path = tuple[Step, "_Path"] | None
"""The last step of a way from the base, and the way to it."""

PASS = 1024
"""Steps that are resolved at a time."""


def path(records: Iterable[Record], at: int | None = None) -> list[Step]:
    """The steps that lead from the base to the weights after `at` steps, or after all; those that were gone back on are left out.

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


def replay(
    slots: Sequence[Slot],
    groups: Sequence[int],
    family: Family,
    held: State,
    seed: int,
    steps: Sequence[Step],
    listen: Callable[[float], None] = lambda done: None,
) -> None:
    """Do to slots what steps did. groups: which group each slot belongs to. held: what the method kept before the first of them; it
    goes on. listen: hears the share that is done.

    An interrupt leaves the slots between two states: what they were is the caller's to load again.
    """
    work = sum(slot.parameter.numel() for slot in slots) * max(1, len(steps))
    done = 0
    for first in range(0, len(steps), PASS):
        some = held.resolved(steps[first : first + PASS], seed)
        for slot, group in zip(slots, groups, strict=True):
            held.update(slot, family, seed, some, group)
            done += slot.parameter.numel() * len(some)
            listen(done / work)
