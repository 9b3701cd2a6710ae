"""A progress bar: the phase, the share that is done, and a text beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Bar:
    """Shows progress on a console. state: makes the text beside the bar."""

    def __init__(self, console: Any, state: Callable[[Any], str] = lambda progress: "") -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn("{task.description:16}"), BarColumn(12), TaskProgressColumn(), TextColumn("{task.fields[state]}"))
        self._progress = Progress(*columns, console=console, refresh_per_second=4)
        self._state = state
        self._phase = ""
        self._task: Any = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._progress.live.transient = True  # leave only the error on the screen
        elif self._task is not None:
            self._progress.update(self._task, completed=1.0)
        self._progress.stop()

    def show(self, progress: Any) -> None:
        """Show progress, an object with `phase` and `done`."""
        if progress.phase != self._phase:
            if self._task is not None:
                self._progress.update(self._task, completed=1.0)
            self._phase = progress.phase
            self._task = self._progress.add_task(progress.phase, total=1.0, state="")
        self._progress.update(self._task, completed=progress.done, state=self._state(progress))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, highlight=False, markup=False)
