"""A run's journal: what its header says, how it begins, and how a run that was cut off goes on from it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zerograd import journal
from zerograd.directions.family import Family
from zerograd.journal import Note, Reader, Record, Restore, Skip, Step, Writer, WrongBase
from zerograd.journal.snapshot import Snapshot
from zerograd.journal.writer import lock, require_unlocked
from zerograd.machine.files import write_text
from zerograd.noise import LAYOUT
from zerograd.optim import METHODS, options_of
from zerograd.tune.loop import as_line
from zerograd.tune.progress import Progress
from zerograd.tune.settings import TuneSettings, from_mapping
from zerograd.update.state import State
from zerograd.version import __version__

if TYPE_CHECKING:
    from zerograd.tune.run import Tuning

NAME = "journal.zgj"

FORMAT = 2
"""Version of the header's fields."""

MOST_RANK = 4096
"""Of directions: what memory is asked for is bounded by what a journal may say."""

FREE = ("minutes", "steps", "evaluations", "evals", "patience", "threads", "device", "trackers")
"""Settings that a run may go on with other values of."""


def header(tuning: Tuning) -> dict[str, Any]:
    """What a run is: enough to begin it again."""
    optimizer, settings = tuning.optimizer, tuning.settings
    return {
        "format": FORMAT,
        "layout": LAYOUT,
        "groups": len(optimizer.param_groups),
        "method": settings.method,
        "parts": optimizer.chosen,
        "seed": optimizer.seed,
        "lr": tuning.lr,
        "base": {"model": settings.model, "identity": tuning.identity},
        "tensors": journal.table(optimizer.slots, optimizer.group_of),
        "settings": dataclasses.asdict(settings),
        "task": tuning.task.spec.to_yaml(),
        "rows": rows_of(tuning),
        "cache": tuning.scorer.cache is not None,
        "versions": {"zerograd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def read_header(path: Path) -> Mapping[str, Any]:
    """The header of a journal. Raises FileNotFoundError or ValueError when it is not there, or not one that this version reads."""
    if not path.exists():
        raise FileNotFoundError(f"journal {path} is not there; give a journal, or the folder of a run")
    with path.open("rb") as file:
        found = Reader(file, path.stat().st_size).header
    for name, own in (("format", FORMAT), ("layout", LAYOUT)):
        if found.get(name) != own:
            raise ValueError(
                f"journal {path} has {name} {found.get(name)!r}, and this zerograd {own}; use the version that wrote it"
            )
    return found


def parts_of(said: Mapping[str, Any]) -> tuple[Family, State, int]:
    """(family, State, seed) of a header. Raises ValueError when it has none, or one that no run has."""
    method, parts, seed = said.get("method"), said.get("parts"), said.get("seed")
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"the header's seed is {seed!r}")
    known = set(options_of(method)) - {"sensitivity"} if isinstance(method, str) and method in METHODS else set()
    if not isinstance(method, str) or method not in METHODS or not isinstance(parts, dict) or not known.issuperset(parts):
        raise ValueError(f"the header's method is {method!r} with parts {parts!r}")
    for name in ("rank", "directions", "history"):
        if isinstance(parts.get(name), int) and parts[name] > MOST_RANK:
            raise ValueError(f"the header's {name} is {parts[name]:,}, more than {MOST_RANK:,}")
    try:
        family, held = METHODS[method].parts(**parts)
    except (TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"the header's method is {method!r} with parts {parts!r}: {error}") from None
    return family, held, seed


def settings_of(run: Path, more: Mapping[str, Any]) -> TuneSettings:
    """The settings of a run that was cut off, with some other ones.

    Raises ValueError naming one that is the run's own, or when the run has ended and is given nothing more to do.
    """
    path = run / NAME
    fields = dict(read_header(path)["settings"])
    require_unlocked(path)
    has_ended = False
    with path.open("rb") as file:
        for record in Reader(file, path.stat().st_size):
            if isinstance(record, (Restore, Note)):
                fields |= record.note.get("settings", {})
                has_ended = bool(record.note.get("ended")) and not record.note.get("interrupted")
    own = [name for name in more if name not in FREE]
    if own:
        raise ValueError(f"{own[0]} is the run's own; leave it out (only {', '.join(FREE)} may be others)")
    if has_ended and (run / "result.json").exists() and not {"minutes", "steps", "evaluations"} & set(more):
        raise ValueError(f"run {run} has ended; give more --steps, --minutes or --evaluations than it had to go on")
    return from_mapping(TuneSettings, fields | dict(more) | {"out": str(run)}, f"run {run}")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a run's folder, and keep other processes out of it; it goes again when nothing was written. Raises JournalLocked."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("wb") as file:
        lock(file.fileno(), folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


def require_free(folder: Path) -> None:
    """Raises ValueError when a run in a folder is being written, or was cut off: what it learnt is not to be lost."""
    path = folder / NAME
    if not path.exists():
        return
    require_unlocked(path)
    if not (folder / "result.json").exists():
        with path.open("rb") as file:
            if any(isinstance(record, Step) for record in Reader(file, path.stat().st_size)):
                mend = f"go on with --resume {folder}, or name another folder"
                raise ValueError(f"out is {folder}, whose run was cut off; {mend}")


def clear(folder: Path) -> None:
    """Make way for a run in place of a finished one."""
    (folder / NAME).unlink(missing_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    write_text(folder / "metrics.jsonl", "")


def begin(tuning: Tuning) -> Writer:
    """Begin the journal of a run."""
    return Writer.create(tuning.folder / NAME, header(tuning))


def go_on(tuning: Tuning) -> Writer:
    """Take up the journal of a run that was cut off, and bring weights, State and loop to where it was.

    Raises WrongBase or ValueError when the model or the rows are others, JournalDamaged, or JournalLocked.
    """
    path, optimizer = tuning.folder / NAME, tuning.optimizer
    said = read_header(path)
    require_base(said, tuning.identity, str(path))
    if said["task"] != tuning.task.spec.to_yaml():
        raise ValueError(
            f"task {tuning.task.name} is not as run {tuning.folder} began with it; give it back its prompt and options"
        )
    if said["rows"] != rows_of(tuning):
        raise ValueError(f"the rows of task {tuning.task.name} are not those that run {tuning.folder} began with")
    records: list[Record] = []
    marks: list[tuple[int, int]] = []
    writer, _, torn = Writer.reopen(path, records.append, marks)
    try:
        if torn:
            tuning.say(f"{path}: the last record was cut short, {torn} bytes of it are left out")
        again = tuning.loop.hear(records)
        limits = {name: getattr(tuning.settings, name) for name in ("minutes", "steps", "evaluations", "evals", "patience")}
        old = {"evaluations": 0} | dict(said["settings"])  # older journals know of no such limit
        for record in records:
            old |= record.note.get("settings", {}) if isinstance(record, (Restore, Note)) else {}
        if again:
            records.append(Restore(_trained_to(records, optimizer.steps), {}))
            writer.add(records[-1])
        if limits != {name: old[name] for name in limits}:
            writer.note({"settings": limits})
            tuning.loop.retime()
        if not tuning.loop.has_ended:
            (tuning.folder / "result.json").unlink(missing_ok=True)
        tuning.lr = said["lr"]
        _merge(tuning)
        _go_back_to(tuning, said, records, marks)
    except BaseException:
        writer.close()
        raise
    return writer


def _trained_to(records: Sequence[Record], steps: int) -> int:
    """The step whose weights training had when it ended: the last of them, or the one that a back-off after it went back to."""
    for record in reversed(records):
        if isinstance(record, (Step, Skip)):
            break
        if isinstance(record, Restore) and "ended" not in record.note:
            return record.step
    return steps


def _go_back_to(tuning: Tuning, said: Mapping[str, Any], records: list[Record], marks: list[tuple[int, int]]) -> None:
    """Bring the weights to where records leave them: from the newest snapshot on the way there, or from the base; and have the best
    ones on the disk."""
    loop, optimizer, slots = tuning.loop, tuning.optimizer, tuning.optimizer.slots
    groups = journal.fit(slots, said["tensors"], said["groups"])

    def replay(steps: list[Step]) -> None:
        parts = optimizer.family, optimizer.held, optimizer.seed
        journal.replay(slots, groups, *parts, steps, lambda done: tuning.listen(Progress("replaying", done)))

    def way_to(snapshot: Snapshot) -> list[Step] | None:
        about = snapshot.about() or {}
        mark = about.get("offset"), about.get("crc")
        return journal.path(records[: marks.index(mark)]) if mark in marks else None

    if loop.best_step is not None and (loop.best.about() or {}).get("steps") != loop.best_step:
        base = Snapshot(tuning.folder / "base.safetensors", optimizer)
        base.take()
        replay(journal.path(records, loop.best_step))
        index = [0, *(i for i, record in enumerate(records, 1) if isinstance(record, (Step, Skip)))][loop.best_step]
        loop.best.take({"steps": loop.best_step, "offset": marks[index][0], "crc": marks[index][1]})
        base.restore()
        base.remove()
    whole = journal.path(records)
    known = [(way, snapshot) for snapshot in (loop.best, loop.latest) if (way := way_to(snapshot)) is not None]
    on_the_way = [(len(way), snapshot) for way, snapshot in known if way == whole[: len(way)]]
    length, snapshot = max(on_the_way, key=lambda pair: pair[0], default=(0, None))
    if snapshot is not None:
        snapshot.restore()
    replay(whole[length:])


def require_base(said: Mapping[str, Any], identity: str, name: str) -> None:
    """Raises WrongBase when a journal is of another base."""
    base = said.get("base")
    if not isinstance(base, dict) or base.get("identity") != identity:
        there = base.get("identity") if isinstance(base, dict) else None
        model = base.get("model") if isinstance(base, dict) else None
        raise WrongBase(
            f"{name} is of base {model} with identity {there}, and this one has identity {identity}; give the base it is of"
        )


def rows_of(tuning: Tuning) -> str:
    """A hash of the rows of a task, in the order that training sees them."""
    hashed = hashlib.blake2b(digest_size=16)
    for split in ("train", "dev", "test"):
        for example in getattr(tuning.task, split):
            hashed.update(json.dumps([split, example.row, example.labels, example.answers], default=str).encode())
    return hashed.hexdigest()


def _merge(tuning: Tuning) -> None:
    """What was logged before, with what the log lacks from the journal; the log is then that."""
    path = tuning.folder / "metrics.jsonl"
    logged: dict[int, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            logged[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            continue  # a line that was cut short
    loop = tuning.loop
    loop.history = [logged.get(int(row["step"]), row) for row in loop.history]
    if 0 in logged and (loop.pending is None or loop.pending["step"]):
        loop.history.insert(0, logged[0])
    write_text(path, "".join(map(as_line, loop.history)))
