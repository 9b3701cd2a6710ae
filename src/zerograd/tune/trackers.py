"""Trackers, which take the numbers of a run while it goes on: TensorBoard always, others through one small protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from zerograd.settings.user_code import load_user_object


class Tracker(Protocol):
    """What a run tells: its settings once, numbers by name as it goes on, its result once."""

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """The run begins. folder: where it will write, there already."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured at a step: loss, lr, spread; now and then dev_loss and dev_value."""

    def end(self, result: Mapping[str, Any]) -> None:
        """The run is over; of one that was given up the result is empty."""


class TensorBoard:
    """Writes what TensorBoard reads into the run's folder, under `tensorboard`."""

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        self._writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, result: Mapping[str, Any]) -> None:
        for name in ("value_before", "value_after", "value_calibrated", "value_shots"):
            if name in result:
                self._writer.add_scalar(f"test/{name}", result[name], result["steps"])
        self._writer.close()


def load_trackers(names: Sequence[str]) -> list[Tracker]:
    """A user's trackers by `module:name` or `file.py:name`: each a class or function that makes one when called with nothing.

    Raises ValueError where the object does not exist, or makes no tracker.
    """
    return [_load_tracker(name) for name in names]


def _load_tracker(name: str) -> Tracker:
    made = load_user_object(name, "tracker")()
    missing = [part for part in ("begin", "log", "end") if not callable(getattr(made, part, None))]
    if missing:
        raise ValueError(f"tracker {name!r} has no {missing[0]}(); it must have begin, log and end")
    tracker: Tracker = made
    return tracker
