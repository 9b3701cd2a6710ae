"""Weights on disk that a run can go back to: those that were best on the dev split, and the latest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zerograd.journal import Writer
from zerograd.journal.snapshot import Snapshot
from zerograd.optim.base import ZerothOrder
from zerograd.tune.state import LoopState

BACK_OFF_FACTOR = 0.3
"""The factor of the learning rate each time that a run diverges."""

MOST_BACK_OFFS = 3
"""How often a run may go back with a lower learning rate."""


class Checkpoints:
    """Snapshots of a run's weights. best: those that were best on the dev split. latest: those of some minutes ago, which shorten
    the replay of a run that is resumed. journal: the run's, where it has one.
    """

    def __init__(self, folder: Path, optimizer: ZerothOrder, journal: Writer | None = None) -> None:
        self.optimizer = optimizer
        self.journal = journal
        self.best = Snapshot(folder / "best.safetensors", optimizer)
        self.latest = Snapshot(folder / "latest.safetensors", optimizer)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Write the weights as they are, once the journal that leads to them is on the disk. Raises OSError."""
        about: dict[str, Any] = {"steps": self.optimizer.steps}
        if self.journal is not None:
            self.journal.sync()
            about |= {"offset": self.journal.offset, "crc": self.journal.crc}
        snapshot.take(about)

    def keep_best(self, state: LoopState, say: Callable[[str], None]) -> None:
        """Keep the weights as the best ones, where the disk has room; training goes on where it has not."""
        try:
            self.save_snapshot(self.best)
            state.best_step = self.optimizer.steps
        except OSError as error:
            say(f"the best weights cannot be kept ({error}); the run ends with the last ones")
            self.best.remove()
            state.best_step = None

    def back_off(self, state: LoopState, why: str, say: Callable[[str], None]) -> bool:
        """Go back to the best weights, for a lower learning rate from there. Returns whether the run can."""
        if state.back_offs == MOST_BACK_OFFS or state.best_step is None:
            return False
        state.back_offs += 1
        step = self.optimizer.steps
        self.go_back(state.best_step, state.to_note(self.optimizer.forwards))
        self.optimizer.go_on(step, self.optimizer.skipped, 0)
        say(f"step {step}: {why}; back to the weights of step {state.best_step} with the learning rate times {BACK_OFF_FACTOR}")
        return True

    def go_back(self, best_step: int, note: Mapping[str, Any]) -> None:
        """Record that the weights go back to the best ones, those after `best_step` steps, and restore them."""
        if self.journal is not None:
            self.journal.restore(best_step, note)
        self.best.restore()

    def remove(self) -> None:
        """Delete the snapshots."""
        self.best.remove()
        self.latest.remove()
