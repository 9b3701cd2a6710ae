"""The errors of zerograd's own; every other error is Python's or torch's, with the field, the value and the mend in its text."""

from __future__ import annotations


class ZerogradError(Exception):
    """Base of the errors below."""


class UnresolvedOperation(ZerogradError, RuntimeError):
    """An operation mixes a perturbed parameter with the batch in a way that cannot be split by example."""


class NotPure(ZerogradError, ValueError):
    """The objective gives different losses for the same weights and batch."""


class SelfCheckFailed(ZerogradError, RuntimeError):
    """The perturbed forward disagrees with really perturbed weights."""


class NotFinite(ZerogradError, RuntimeError):
    """The loss has been NaN or infinite for too many steps in a row."""


class JournalDamaged(ZerogradError, ValueError):
    """Bytes of a journal differ from the ones that were written. offset: of the header or record that they are in."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what}, at byte {offset}")
        self.offset = offset


class WrongBase(ZerogradError, ValueError):
    """A journal is of another model."""


class FileLocked(ZerogradError, ValueError):
    """Another process writes this file, or files of this folder."""


class RunFailed(ZerogradError, ValueError):
    """A run in a process of its own ended without a result; its text is the one line that says why."""


class RewardFailed(ZerogradError, ValueError):
    """A reward function raised, or did not return one number or None an answer. The weights are as they were before the step."""
