"""Trackers take the numbers of a run: TensorBoard always, a user's own through a small protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from zerograd.settings.user_code import load_user_object


class Tracker(Protocol):
    """A receiver of a run's settings, its numbers while it runs, and its result."""

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """The run begins. folder: the run's folder, which exists."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step: loss, lr, spread; at evaluations also dev_loss and dev_value."""

    def end(self, result: Mapping[str, Any]) -> None:
        """The run is over. The result is empty if an error ended the run."""


class TensorBoard:
    """A tracker that writes TensorBoard files to `tensorboard` in the run's folder."""

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
    """A user's trackers by `module:name` or `file.py:name`, each a class or function without arguments that makes a
    tracker.

    Raises ValueError if the object does not exist, or does not make a tracker.
    """
    return [_load_tracker(name) for name in names]


def _load_tracker(name: str) -> Tracker:
    loaded = load_user_object(name, "tracker")()
    missing = [part for part in ("begin", "log", "end") if not callable(getattr(loaded, part, None))]
    if missing:
        raise ValueError(f"tracker {name!r} has no {missing[0]}(); it must have begin, log and end")
    tracker: Tracker = loaded
    return tracker
