"""Shipping: write a finished run as one small file, and open such a file as a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerograd import journal
from zerograd.journal import Note, Skip, Writer
from zerograd.rewards.task import is_built_in
from zerograd.runs.folder import Run, open_run
from zerograd.runs.journals import ReadJournal, find_journal, read_journal
from zerograd.runs.replayed import replayed, settings_of
from zerograd.text.data import splits, tasks
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.text.scoring import Scorer
from zerograd.tune.settings import TuneSettings, from_record

LOCAL_SETTINGS = frozenset(
    ["task", "data", "dev", "test", "text", "label", "template", "options", "out", "trackers", "device", "threads"]
)
"""Settings of a machine or of its files, which are not shipped; the task is shipped with its prompt."""

SHIPPED_RESULT = (
    *("task", "method", "scheme", "objective", "seed", "steps", "metric", "test_rows"),
    *("value_before", "value_after", "ci_before", "ci_after", "ci_gain"),
)
"""Fields of the result that are shipped."""


def ship(folder: str, out: Path) -> int:
    """Write a finished run as one file: a journal of the steps that lead to its weights, and its result. Returns the
    size in bytes.

    The file has no paths of this machine.
    Raises FileNotFoundError or ValueError for a run that cannot be shipped.
    """
    run = open_run(folder)
    if out.exists():
        raise ValueError(f"out is {out}, which exists; name another file")
    if run.settings.scheme == "prefix":
        raise ValueError(
            f"scheme prefix starts from activations, which differ between machines by rounding; share {run.folder}/model instead"
        )
    source = read_journal(find_journal(folder))
    steps = {step.number: step for step in journal.path(source.records)}
    settings = {name: value for name, value in source.header["settings"].items() if name not in LOCAL_SETTINGS}
    model = Path(run.settings.model)
    settings["model"] = model.name if model.is_absolute() or model.exists() else run.settings.model
    objective = _no_function(run.settings.objective) or "loss"
    settings |= {"metric": _no_function(run.settings.metric), "objective": objective, "mix": 1.0}
    settings |= _without_user_rewards(settings)
    task = _without_functions(run.spec).to_yaml()
    base = {**source.header["base"], "model": settings["model"]}
    header = {**source.header, "settings": settings, "task": task, "base": base}
    result = {name: run.result[name] for name in SHIPPED_RESULT if name in run.result}
    shipped_steps = source.steps[: max(steps, default=-1) + 1]
    partial = out.with_name(f".{out.name}.part")
    try:
        writer = Writer.create(partial, {**header, "shipped": len(shipped_steps)})
        for step in shipped_steps:
            writer.add(steps.get(step.number, Skip(step.number, step.loss)))
        writer.note({"result": result | {"metric": _no_function(str(result["metric"]))}})
        writer.close()
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return writer.offset


@dataclass(frozen=True)
class Shipped(Run):
    """A run from one file. source: the file's journal. base: the base model on this machine."""

    source: ReadJournal
    base: str = ""

    def scorer(self, device: str = "auto", task: Task | None = None) -> Scorer:
        """A scorer of the rebuilt tuned model."""
        loaded = replayed(self.source, self.base, device=device)
        return Scorer(loaded.model, loaded.tokenizer, task or Task(self.spec), loaded.head, self.settings.max_tokens)


def open_run_or_file(name: str, base: str = "") -> Run:
    """A run by its folder or by its shipped file. Raises FileNotFoundError or ValueError."""
    if not Path(name).is_file():
        return open_run(name)
    source = read_journal(Path(name))
    results = [record.note["result"] for record in source.records if isinstance(record, Note) and "result" in record.note]
    result = dict(results[0]) if results and isinstance(results[0], dict) else {}
    spec = tasks.parse(str(source.header.get("task")), Path(name).stem)
    # only the user may name functions and files to load, not a file from elsewhere
    result["metric"] = _no_function(str(result.get("metric") or spec.metric))
    spec = dataclasses.replace(_without_functions(spec), metric=result["metric"])
    recorded = dataclasses.asdict(settings_of(source))
    fields = {key: value for key, value in recorded.items() if key not in LOCAL_SETTINGS}
    fields |= _without_user_rewards(fields)
    return Shipped(Path(name), from_record(fields, f"journal {name}"), spec, result, source, base)


def _without_user_rewards(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of rewards, if all of these are built in; else as without them."""
    names = ("reward", "reward_weights", "temperature", "top_k", "top_p", "lag", "off_task")
    if is_built_in(settings.get("reward", ())):
        return {name: settings[name] for name in names if name in settings}
    return {name: TuneSettings.__dataclass_fields__[name].default for name in names}


def _no_function(name: str) -> str:
    """The name of a metric; empty for a user's function."""
    return "" if ":" in name else name


def _without_functions(spec: TaskSpec) -> TaskSpec:
    """The task without user functions, and without data outside the package."""
    data = spec.data if splits.is_packaged(str(spec.data)) else ""
    return dataclasses.replace(spec, data=data, metric=_no_function(spec.metric))
