"""What can be done with a run's journal beside going on: weights from it, one file to give away, a part of it, two compared."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerograd import journal
from zerograd.journal import Note, Reader, Record, Restore, Skip, Step, Writer
from zerograd.journal.format import to_bytes
from zerograd.machine import environment
from zerograd.machine.files import new_folder
from zerograd.runs import folder as runs
from zerograd.spaces import weights
from zerograd.text.data import splits, tasks
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.text.models import loading as models
from zerograd.text.models import schemes
from zerograd.text.models.loading import Loaded
from zerograd.text.scoring import Scorer
from zerograd.tune import resume as recording
from zerograd.tune.progress import Listener, Progress
from zerograd.tune.settings import TuneSettings, from_mapping

LOCAL = ("task", "data", "dev", "test", "text", "label", "template", "options", "out", "trackers", "device", "threads")
"""Settings that are of a machine, or of columns of its files: the task, which is shipped whole, has what is asked."""

MOST = 4096
"""Of ranks and virtual tokens, that memory is asked for before anything else can tell that a file is no run's."""

NUMBERS = 1 << 29
"""Of the factors of a step's directions in a tensor: 2 GB."""

RESULT = (
    *("task", "method", "scheme", "objective", "seed", "steps", "metric", "test_rows"),
    *("value_before", "value_after", "ci_before", "ci_after", "ci_gain"),
)
"""What a shipped run tells of its result."""


@dataclass(frozen=True)
class Told:
    """A journal that was read whole. torn: bytes at its end that are the beginning of a record."""

    path: Path
    header: Mapping[str, Any]
    records: list[Record]
    torn: int

    @property
    def steps(self) -> list[Step | Skip]:
        """Its steps, in order."""
        return [record for record in self.records if isinstance(record, (Step, Skip))]


def find(name: str) -> Path:
    """A journal by its path, or by the folder of its run. Raises FileNotFoundError."""
    path = Path(name)
    path = path / recording.NAME if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"journal {path} is not there; give a journal, or the folder of a run")
    return path


def read(path: Path) -> Told:
    """A journal with all its records. Raises JournalDamaged, or ValueError for a header of another version."""
    header = recording.read_header(path)
    with path.open("rb") as file:
        reader = Reader(file, path.stat().st_size)
        records = list(reader)
    if "shipped" in header and (reader.torn or reader.steps != header["shipped"] or not isinstance(records[-1], Note)):
        raise ValueError(f"{path} was cut short: it has {reader.steps} of its {header['shipped']} steps; fetch it again")
    return Told(path, header, records, reader.torn)


def replayed(told: Told, base: str = "", at: int | None = None, device: str = "cpu", listen: Listener = lambda p: None) -> Loaded:
    """The model of a journal after `at` steps, or as the run left it.

    base: the model that the run began from; where it was then, when empty. Raises WrongBase when it is another.
    """
    steps = journal.path(told.records, at)
    loaded, slots, groups = _base(told, base, device, listen)
    family, held, seed = recording.parts_of(told.header)
    held.begin(slots, told.header["groups"])
    family.begin(slots)
    journal.replay(slots, groups, family, held, seed, steps, lambda done: listen(Progress("replaying", done)))
    return loaded


def _require_bounded(told: Told, rank: int, slots: list[weights.Slot]) -> None:
    """Raises ValueError where the factors of a step's directions would be larger than any run's."""
    most = max((step.multipliers.shape[1] for step in told.steps if isinstance(step, Step)), default=0)
    largest = max(slot.view[0] * (slot.view[1] + slot.view[2]) for slot in slots)
    if most * rank * largest > NUMBERS:
        raise ValueError(f"journal {told.path} has a step of {most:,} directions of rank {rank:,}, more than can be held")


def _base(told: Told, base: str, device: str, listen: Listener) -> tuple[Loaded, list[weights.Slot], list[int]]:
    """What a run began from: (its model, what it trained, the group of each). Raises WrongBase."""
    environment.prepare()
    settings = dataclasses.replace(_settings(told), device=device)
    for name in ("lora_rank", "virtual_tokens"):
        if getattr(settings, name) > MOST:
            raise ValueError(f"journal {told.path} has {name} {getattr(settings, name):,}, more than {MOST:,}")
    if "shipped" in told.header and not base and settings.model != models.DEMO:
        raise ValueError(f"{told.path} is of base {settings.model}; name where that is with --base")
    own = settings.scheme not in schemes.ADAPTERS
    listen(Progress("loading the base", 0.0))
    loaded = runs.base(dataclasses.replace(settings, scheme="full", layers=0, pattern="") if own else settings, base)
    recording.require_base(told.header, journal.identity(loaded.model), f"journal {told.path}")
    said = told.header.get("tensors")
    if own and isinstance(said, list):  # what was trained is what the table names: no pattern of a file is searched for
        names = {str(row.get("name")) for row in said if isinstance(row, dict)}
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(name in names)
    slots = weights.collect(loaded.model, runs.storage(settings))
    _require_bounded(told, recording.parts_of(told.header)[0].rank, slots)
    return loaded, slots, journal.fit(slots, said, told.header["groups"])


def _settings(told: Told) -> TuneSettings:
    fields = told.header.get("settings")
    if not isinstance(fields, dict):
        raise ValueError(f"journal {told.path} has no settings in its header, so that no model can be made of it")
    return from_mapping(TuneSettings, fields, f"journal {told.path}")


def save(loaded: Loaded, out: Path) -> None:
    """Write a model, or the adapter that was trained, and its tokenizer to a folder that is not there yet."""
    with new_folder(out) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)


def low_rank(told: Told, rank: int, base: str, at: int | None, out: Path, listen: Listener = lambda p: None) -> float:
    """Write what a run did to linear layers as a LoRA adapter that PEFT loads: of each change the nearest matrix of a rank.

    Returns the share of the whole change that the adapter lacks, in Frobenius norm: tensors that are no linear layer's are lacking.
    Raises ValueError for a run that trained an adapter, or changed nothing.
    """
    import peft
    from safetensors.torch import save_file

    settings = _settings(told)
    if settings.scheme in schemes.ADAPTERS:
        raise ValueError(f"rank is {rank}, and the run trained an adapter ({settings.scheme}); leave it out")
    loaded, slots, groups = _base(told, base, "cpu", listen)
    steps = journal.path(told.records, at)
    linear = {f"{name}.weight": name for name, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear)}
    factors: dict[str, torch.Tensor] = {}
    whole = lacking = 0.0
    for i, (slot, group) in enumerate(zip(slots, groups, strict=True)):
        listen(Progress("replaying", i / len(slots)))
        before = slot.exact().clone()
        family, held, seed = recording.parts_of(told.header)
        held.begin([slot], told.header["groups"])
        family.begin(slots)
        journal.replay([slot], [group], family, held, seed, steps)
        change = slot.exact() - before
        whole += float(change.square().sum(dtype=torch.float64))
        if slot.name in linear:
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            half, more = s[:rank].sqrt(), max(0, rank - len(s))
            left, right = torch.nn.functional.pad(u[:, :rank] * half, (0, more)), half[:, None] * v[:rank]
            name = f"base_model.model.{linear[slot.name]}"
            factors[f"{name}.lora_B.weight"] = left.contiguous()
            factors[f"{name}.lora_A.weight"] = torch.nn.functional.pad(right, (0, 0, 0, more)).contiguous()
            change -= u[:, :rank] * half @ right
        lacking += float(change.square().sum(dtype=torch.float64))
    if not factors or not whole:
        raise ValueError("the run changed no linear layer, so there is nothing that LoRA could hold")
    targets = sorted(name for weight, name in linear.items() if f"base_model.model.{name}.lora_A.weight" in factors)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type=None)
    config.base_model_name_or_path = base or settings.model
    with new_folder(out) as folder:
        config.save_pretrained(str(folder))
        save_file(factors, folder / "adapter_model.safetensors")
        loaded.tokenizer.save_pretrained(folder)
    return math.sqrt(lacking / whole)


def ship(folder: str, out: Path) -> int:
    """Write a finished run as one file: a journal of the steps that its weights came from, and its result. Returns its bytes.

    Paths of this machine are left out. Raises FileNotFoundError or ValueError for a run that cannot be shipped.
    """
    run = runs.open_run(folder)
    if out.exists():
        raise ValueError(f"out is {out}, which is there; name another file")
    if run.settings.scheme == "prefix":
        raise ValueError(
            f"scheme prefix begins from activations, which machines round otherwise; give {run.folder}/model away instead"
        )
    told = read(find(folder))
    steps = {step.number: step for step in journal.path(told.records)}
    settings = {name: value for name, value in told.header["settings"].items() if name not in LOCAL}
    model = Path(run.settings.model)
    settings["model"] = model.name if model.is_absolute() or model.exists() else run.settings.model
    objective = _no_function(run.settings.objective) or "loss"
    settings |= {"metric": _no_function(run.settings.metric), "objective": objective, "mix": 1.0}
    task = _without_functions(run.spec).to_yaml()
    base = {**told.header["base"], "model": settings["model"]}
    header = {**told.header, "settings": settings, "task": task, "base": base}
    result = {name: run.result[name] for name in RESULT if name in run.result}
    kept = told.steps[: max(steps, default=-1) + 1]
    partial = out.with_name(f".{out.name}.part")
    try:
        writer = Writer.create(partial, {**header, "shipped": len(kept)})
        for step in kept:
            writer.add(steps.get(step.number, Skip(step.number, step.loss)))
        writer.note({"result": result | {"metric": _no_function(str(result["metric"]))}})
        writer.close()
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return writer.offset


def _no_function(name: str) -> str:
    """The name of a metric, or nothing where it is a function's: that is a file of some machine."""
    return "" if ":" in name else name


def _without_functions(spec: TaskSpec) -> TaskSpec:
    """A task that names no function, and no rows but those of the package."""
    data = spec.data if splits.is_packaged(str(spec.data)) else ""
    return dataclasses.replace(spec, data=data, metric=_no_function(spec.metric))


@dataclass(frozen=True)
class Shipped(runs.Run):
    """A run that came as one file. base: the model that it began from, on this machine."""

    told: Told
    base: str = ""

    def scorer(self, device: str = "auto", task: Task | None = None) -> Scorer:
        """The tuned model, made again."""
        loaded = replayed(self.told, self.base, device=device)
        return Scorer(loaded.model, loaded.tokenizer, task or Task(self.spec), loaded.head, self.settings.max_tokens)


def opened(name: str, base: str = "") -> runs.Run:
    """A run by its folder, or by the file that it was shipped as. Raises FileNotFoundError or ValueError."""
    if not Path(name).is_file():
        return runs.open_run(name)
    told = read(Path(name))
    results = [record.note["result"] for record in told.records if isinstance(record, Note) and "result" in record.note]
    result = dict(results[0]) if results and isinstance(results[0], dict) else {}
    spec = tasks.parse(str(told.header.get("task")), Path(name).stem)
    # a function is called, and a file read, when the user names it, not when a file from elsewhere does
    result["metric"] = _no_function(str(result.get("metric") or spec.metric))
    spec = dataclasses.replace(_without_functions(spec), metric=result["metric"])
    fields = {key: value for key, value in dict(told.header["settings"]).items() if key not in LOCAL}
    return Shipped(Path(name), from_mapping(TuneSettings, fields, f"journal {name}"), spec, result, told, base)


def cut(told: Told, at: int, out: Path) -> int:
    """Write the journal's beginning, until `at` steps were taken, as a journal of its own. Returns its bytes.

    Raises ValueError when there were not so many steps, or the file is there.
    """
    if at > len(told.steps):
        raise ValueError(f"step {at} is asked for, and the journal has {len(told.steps)} steps; ask for one that it has")
    if out.exists():
        raise ValueError(f"out is {out}, which is there; name another file")
    taken = itertools.accumulate(isinstance(record, (Step, Skip)) for record in told.records)
    writer = Writer.create(out, told.header)
    for record, count in zip(told.records, taken, strict=True):
        if count > at or (count == at and isinstance(record, (Restore, Note)) and "ended" in record.note):
            break
        writer.add(record)
    writer.close()
    return writer.offset


def parting(first: Told, second: Told) -> tuple[list[str], int | None]:
    """Where two runs part: (fields of the headers that differ, the first step that differs or that one run lacks)."""
    fields = sorted({*first.header, *second.header})
    differ = [name for name in fields if first.header.get(name) != second.header.get(name)]
    for number, (one, other) in enumerate(itertools.zip_longest(first.steps, second.steps)):
        if one is None or other is None or _bits(one) != _bits(other):
            return differ, number
    return differ, None


def _bits(record: Step | Skip) -> bytes:
    return to_bytes(record, 0)
