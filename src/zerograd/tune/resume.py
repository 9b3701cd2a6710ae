"""Resuming a run that was interrupted, or that has more to do now: weights, optimiser memory and loop state from the
journal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerograd import journal
from zerograd.journal import Note, Reader, Record, Restore, Skip, Step, Writer
from zerograd.journal.header import read_header
from zerograd.journal.snapshot import Snapshot
from zerograd.machine.files import require_unlocked, write_text
from zerograd.tune.checkpoints import Checkpoints
from zerograd.tune.folder import JOURNAL, METRICS, RESULT
from zerograd.tune.progress import Listener, Progress
from zerograd.tune.record import require_same_run
from zerograd.tune.schedule import Limits
from zerograd.tune.settings import TuneSettings, from_record
from zerograd.tune.setup import Setup
from zerograd.tune.sinks import Row, Sinks, as_line
from zerograd.tune.state import LoopState, replay_records

CHANGEABLE = ("minutes", "steps", "evaluations", "evals", "patience", "threads", "device", "trackers")
"""Settings that a resumed run may change."""

RECORDED_CHANGES = ("minutes", "steps", "evaluations", "evals", "patience")
"""Changed settings that the journal notes, since they decide when evaluations are due and when the run ends."""

Mark = tuple[int, int]
"""(offset, crc) at the end of the header, or of a record."""


def resumed_settings(run: Path, changes: Mapping[str, Any]) -> TuneSettings:
    """The settings of the run in a folder, with changes.

    Raises ValueError naming a setting that a resumed run cannot change, and for a run that has ended without a new
    limit.
    """
    path = run / JOURNAL
    fields = dict(read_header(path)["settings"])
    require_unlocked(path)
    has_ended = False
    with path.open("rb") as file:
        for record in Reader(file, path.stat().st_size):
            if isinstance(record, (Restore, Note)):
                fields |= record.note.get("settings", {})
                has_ended = bool(record.note.get("ended")) and not record.note.get("interrupted")
    fixed = [name for name in changes if name not in CHANGEABLE]
    if fixed:
        raise ValueError(f"{fixed[0]} is the run's own; leave it out (only {', '.join(CHANGEABLE)} may change)")
    if has_ended and (run / RESULT).exists() and not {"minutes", "steps", "evaluations"} & set(changes):
        raise ValueError(f"run {run} has ended; to continue it, give more --steps, --minutes or --evaluations than it had")
    return from_record(fields | dict(changes) | {"out": str(run)}, f"run {run}")


def resume(setup: Setup, sinks: Sinks) -> tuple[LoopState, Writer]:
    """Restore weights, optimiser memory and counts to the end of the journal in the setup's folder.

    Returns the loop's state, and the journal, open for more records.
    Raises WrongBase or ValueError if model, task or rows have changed; JournalDamaged; FileLocked.
    """
    path = setup.folder / JOURNAL
    header = read_header(path)
    require_same_run(header, setup)
    records: list[Record] = []
    marks: list[Mark] = []
    writer, _, torn = Writer.reopen(path, records.append, marks)
    try:
        if torn:
            sinks.say(f"{path}: the last record is incomplete; its {torn} bytes are removed")
        state, has_more = replay_records(records, setup)
        if has_more:
            records.append(Restore(_last_trained(records, setup.optimizer.steps), {}))
            writer.add(records[-1])
        _note_changes(setup, header, records, state, writer)
        if not state.has_ended:
            (setup.folder / RESULT).unlink(missing_ok=True)
        setup.lr = header["lr"]
        _merge_history(setup.folder / METRICS, state)
        _restore_weights(setup, header, state, records, marks, sinks.listen)
    except BaseException:
        writer.close()
        raise
    return state, writer


def _note_changes(setup: Setup, header: Mapping[str, Any], records: Sequence[Record], state: LoopState, writer: Writer) -> None:
    """Note the settings that have changed, and count the evaluations that are due under them."""
    before = dict(header["settings"])
    for record in records:
        before |= record.note.get("settings", {}) if isinstance(record, (Restore, Note)) else {}
    now = {name: getattr(setup.settings, name) for name in RECORDED_CHANGES}
    if now != {name: before[name] for name in now}:
        writer.note({"settings": now})
        state.reschedule(Limits.of(setup.settings).done(state.seconds, setup.optimizer), setup.settings.evals)


def _last_trained(records: Sequence[Record], steps: int) -> int:
    """The step of the weights at the end of training: the last one, or the one that a back-off after it returned to."""
    for record in reversed(records):
        if isinstance(record, (Step, Skip)):
            break
        if isinstance(record, Restore) and "ended" not in record.note:
            return record.step
    return steps


def _restore_weights(
    setup: Setup, header: Mapping[str, Any], state: LoopState, records: list[Record], marks: list[Mark], listen: Listener
) -> None:
    """Replay the weights to the end of the records, from the newest snapshot on that path or from the base.

    The snapshot of the best weights is made again first if it is not on disk.
    """
    optimizer = setup.optimizer
    journal.fit(optimizer.spaces, header["tensors"], header["groups"])
    checkpoints = Checkpoints(setup.folder, optimizer)

    def replay(steps: list[Step]) -> None:
        journal.replay(optimizer.memory, steps, lambda done: listen(Progress("replaying", done)))

    def path_to(snapshot: Snapshot) -> list[Step] | None:
        """The steps that lead to a snapshot; None without a snapshot of this journal."""
        about = snapshot.about() or {}
        mark = about.get("offset"), about.get("crc")
        return journal.path(records[: marks.index(mark)]) if mark in marks else None

    best_step = state.best_step
    if best_step is not None and (checkpoints.best.about() or {}).get("steps") != best_step:
        base = Snapshot(setup.folder / "base.safetensors", optimizer.spaces, optimizer.memory)
        base.take()
        replay(journal.path(records, best_step))
        index = [0, *(i for i, record in enumerate(records, 1) if isinstance(record, (Step, Skip)))][best_step]
        checkpoints.best.take({"steps": best_step, "offset": marks[index][0], "crc": marks[index][1]})
        base.restore()
        base.remove()
    all_steps = journal.path(records)
    known = [(path, snapshot) for snapshot in (checkpoints.best, checkpoints.latest) if (path := path_to(snapshot)) is not None]
    reachable = [(len(path), snapshot) for path, snapshot in known if path == all_steps[: len(path)]]
    length, nearest = max(reachable, key=lambda pair: pair[0], default=(0, None))
    if nearest is not None:
        nearest.restore()
    replay(all_steps[length:])


def _merge_history(path: Path, state: LoopState) -> None:
    """Complete the state's history with the logged rows, and write the history to the file of logged rows."""
    logged: dict[int, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            logged[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            continue  # an incomplete line
    state.history = [logged.get(int(row["step"]), row) for row in state.history]
    if 0 in logged and (state.pending is None or state.pending["step"]):
        state.history.insert(0, logged[0])
    write_text(path, "".join(map(as_line, state.history)))
