"""Where a run sends its progress, its messages and the numbers of its steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zerograd.tune.progress import Listener, ignore_progress
from zerograd.tune.trackers import Tracker

Row = dict[str, float]
"""The numbers of a logged step, by name."""


@dataclass
class Sinks:
    """The receivers of a run's progress, messages and numbers.

    listen: takes progress. say: takes messages of one line. trackers: take the rows of logged steps. metrics: a file of
    JSON lines, to which these rows are appended; None for no file.
    """

    listen: Listener = ignore_progress
    say: Callable[[str], None] = lambda line: None
    trackers: list[Tracker] = field(default_factory=list)
    metrics: Path | None = None

    def log(self, row: Row) -> None:
        """Send the row of a step to the file and the trackers."""
        if self.metrics is not None:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(as_line(row))
        for tracker in self.trackers:
            tracker.log(int(row["step"]), {name: value for name, value in row.items() if name != "step"})


def as_line(row: Row) -> str:
    """A row as a line of metrics.jsonl."""
    return json.dumps({name: value for name, value in row.items() if math.isfinite(value)}) + "\n"
