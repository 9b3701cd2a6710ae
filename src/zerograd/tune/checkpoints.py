"""Snapshots of a run: the weights that were best on the dev split, and the latest weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zerograd.journal import Writer
from zerograd.journal.snapshot import Snapshot
from zerograd.optim.base import ZerothOrder
from zerograd.tune.state import LoopState

BACK_OFF_FACTOR = 0.3
"""The factor of the learning rate at each divergence."""

MAX_BACK_OFFS = 3
"""The most divergences after which a run goes back to its best weights with a lower learning rate."""


class Checkpoints:
    """Snapshots of a run's weights.

    best: the weights that were best on the dev split. latest: weights of some minutes ago, which shorten the replay of
    a resumed run. journal: the run's journal, if it has one.
    """

    def __init__(self, folder: Path, optimizer: ZerothOrder, journal: Writer | None = None) -> None:
        self.optimizer = optimizer
        self.journal = journal
        self.best = Snapshot(folder / "best.safetensors", optimizer.spaces, optimizer.memory)
        self.latest = Snapshot(folder / "latest.safetensors", optimizer.spaces, optimizer.memory)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Write the current weights, after the journal's records up to now are on disk. Raises OSError."""
        about: dict[str, Any] = {"steps": self.optimizer.steps}
        if self.journal is not None:
            self.journal.sync()
            about |= {"offset": self.journal.offset, "crc": self.journal.crc}
        snapshot.take(about)

    def keep_best(self, state: LoopState, say: Callable[[str], None]) -> None:
        """Save the current weights as the best ones; training continues without if the disk is full."""
        try:
            self.save_snapshot(self.best)
            state.best_step = self.optimizer.steps
        except OSError as error:
            say(f"the best weights cannot be saved ({error}); the run will end with the last ones")
            self.best.remove()
            state.best_step = None

    def back_off(self, state: LoopState, why: str, say: Callable[[str], None]) -> bool:
        """Go back to the best weights, to continue with a lower learning rate. Returns whether the run can continue."""
        if state.back_offs == MAX_BACK_OFFS or state.best_step is None:
            return False
        state.back_offs += 1
        step = self.optimizer.steps
        self.go_back(state.best_step, state.to_note(self.optimizer.forwards))
        self.optimizer.continue_from(step, self.optimizer.skipped, 0)
        say(f"step {step}: {why}; back to the weights of step {state.best_step} with the learning rate times {BACK_OFF_FACTOR}")
        return True

    def go_back(self, best_step: int, note: Mapping[str, Any]) -> None:
        """Record the return to the best weights, after `best_step` steps, and restore them."""
        if self.journal is not None:
            self.journal.restore(best_step, note)
        self.best.restore()

    def remove(self) -> None:
        """Delete the snapshots."""
        self.best.remove()
        self.latest.remove()
