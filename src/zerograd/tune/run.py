"""Fine-tuning with evaluations alone: `tune(settings)` is what the command line runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from zerograd import journal
from zerograd.evaluate.hidden_cache import HiddenCache
from zerograd.machine import environment, memory, workers
from zerograd.machine.files import new_folder, write_text
from zerograd.optim import METHODS
from zerograd.optim.base import ZerothOrder
from zerograd.report import run_page as report
from zerograd.runs import folder as runs
from zerograd.text import evaluation, metrics, objectives
from zerograd.text.data import columns, order, splits, tasks
from zerograd.text.data.sources import Source
from zerograd.text.data.tasks import Example, Task
from zerograd.text.evaluation import Answers
from zerograd.text.judge import Judge, judged, metric_of, predictions
from zerograd.text.models import loading as models
from zerograd.text.models import schemes
from zerograd.text.scoring import Batch, Scorer
from zerograd.tune import data_summary as findings
from zerograd.tune import loop, trackers
from zerograd.tune import lr_finder as rates
from zerograd.tune import resume as recording
from zerograd.tune.loop import Loop
from zerograd.tune.progress import Listener, Progress
from zerograd.tune.settings import AUTO, TaskSettings, TuneSettings, rate
from zerograd.tune.trackers import TensorBoard, Tracker
from zerograd.version import __version__

FIT_ROWS = 2_000
"""Training rows, at most, that the untouched model scores to have its offsets fitted."""

UNTOUCHED = "untouched.json"
"""What the model said before training, until the run has ended."""

FILES = (
    "journal.zgj",
    "model/",
    "tensorboard/",
    "settings.json",
    "task.yaml",
    "metrics.jsonl",
    "predictions.jsonl",
    "result.json",
    "report.html",
)
"""What a run's folder holds."""

DEMONSTRATIONS = 2**32 - 1
"""The epoch whose order chooses demonstrations; training does not come so far."""


class Tuning:
    """A run from model to report. listen hears how it goes, say what was found in the data and is of note. resume: go on with the
    run of the folder that the settings name, which was cut off.

    Raises ValueError or FileNotFoundError for what is wrong before anything is written.
    """

    def __init__(
        self,
        settings: TuneSettings,
        listen: Listener = lambda progress: None,
        say: Callable[[str], None] = lambda line: None,
        resume: bool = False,
    ) -> None:
        self.settings = settings
        self.resume = resume
        self.listen = listen
        self.say = say
        self.started = time.perf_counter()
        environment.prepare()
        workers.use(settings.threads)
        models.device_of(settings.device)  # before any work
        listen(Progress("reading the data", 0.0))
        self.task = task_of(settings)
        self.folder = Path(settings.out or f"runs/{self.task.name}-{settings.method}-{settings.seed}")
        self.parent = _writable(self.folder)
        if not resume:
            recording.require_free(self.folder)
        objective = "" if settings.objective == objectives.LOSS else settings.objective
        self.metric = metric_of(settings.metric or objective, self.task.spec)
        listen(Progress("loading the model", 0.0))
        loaded = runs.base(settings)
        self.head, self.model = loaded.head, loaded.model
        self.scorer = Scorer(self.model, loaded.tokenizer, self.task, loaded.head, settings.max_tokens)
        self.scorer.settle(self.task.train[:2])
        if settings.scheme not in schemes.ADAPTERS:
            self.scorer.cut(self.task.train[:2])
        self.identity = journal.identity(self.model)
        self.objective = self._objective()
        self.lr = rate(settings.method, settings.scheme) if isinstance(settings.lr, str) else settings.lr
        self.optimizer = self._optimizer()
        self.copies = self.optimizer.copies  # of the batch, in a pass
        self.rows = self.copies * settings.batch_size  # of a step, and of an evaluation
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.journal: journal.Writer | None = None  # of a run that has begun
        self.writes = False  # the same
        self.trackers: list[Tracker] = []  # the same
        self._trackers = [TensorBoard(), *(trackers.tracker(name) for name in settings.trackers)]
        self.loop = Loop(self)
        if not resume:
            self._require_room()
        for line in findings.findings(self.scorer) + self._cautions():
            say(line)

    def run(self) -> dict[str, Any]:
        """Train, evaluate before and after, write the run's folder, and return its result."""
        with recording.alone(self.folder):
            if not self.resume:
                recording.require_free(self.folder)
            return self._run()

    def _run(self) -> dict[str, Any]:
        self.attach()
        judge = Judge(self.scorer, self.task.test, self.metric)
        untouched = self._untouched(judge)
        memory.reset_peak()
        with self.cached():
            return self._recorded(judge, untouched)

    @contextlib.contextmanager
    def cached(self) -> Iterator[None]:
        """Keep the hidden states of frozen layers in the run's folder while the block runs, when the disk has ample room."""
        self.scorer.cache = self._cache()
        try:
            yield
        finally:
            if self.scorer.cache is not None:
                self.scorer.cache.close()

    def _recorded(self, judge: Judge, untouched: dict[str, Any]) -> dict[str, Any]:
        if self.settings.lr == AUTO and not self.resume:
            self.lr = rates.find(self)
            self.say(f"the learning rate is {self.lr:.3g}, by a range test")
        if not self.resume:
            recording.clear(self.folder)
        if not self.optimizer.takes_backward:
            self.journal = recording.go_on(self) if self.resume else recording.begin(self)
            self.optimizer.record = self.journal.add
        self.writes = True
        result: dict[str, Any] = {}
        try:
            for tracker in self._trackers:
                tracker.begin(self.folder, dataclasses.asdict(self.settings))
                self.trackers.append(tracker)
            result = self._trained_and_judged(judge, untouched)
            if self.journal is not None:
                self.journal.sync()
        except OSError as error:
            say = f"run {self.folder} stopped after step {self.optimizer.steps}: {error}"
            lost = f"no journal can hold the steps of method {self.settings.method}: mend that, and begin again"
            kept = f"nothing that was recorded is lost: mend that, and go on with --resume {self.folder}"
            raise OSError(f"{say}; {lost if self.journal is None else kept}") from error
        finally:
            self.optimizer.record = None
            with contextlib.suppress(OSError):
                if self.journal is not None:
                    self.journal.close()
            for tracker in self.trackers:
                tracker.end(result)
        self.loop.close()
        if not self.loop.interrupted:
            if self.scorer.cache is not None:
                self.scorer.cache.remove()
            (self.folder / UNTOUCHED).unlink(missing_ok=True)
        return result

    def _untouched(self, judge: Judge) -> dict[str, Any]:
        """What the model says before training, of test rows, of training rows, behind demonstrations, and its peak of memory."""
        kept = self.folder / UNTOUCHED
        if self.resume and kept.exists():
            with contextlib.suppress(ValueError, TypeError):
                said: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
                return said | {name: Answers(**value) for name, value in said.items() if isinstance(value, dict)}
        memory.reset_peak()
        before = self.answers(self.task.test, "zero-shot, test")
        judge.require(before)
        fit = self.answers(self.task.train[:FIT_ROWS], "zero-shot, train") if self.task.spec.kind == "options" else None
        shots = None
        if self.settings.shots:
            with self.scorer.encoder.demonstrating(demonstrations(self.task, self.settings.shots, self.settings.seed)):
                shots = self.answers(self.task.test, "in-context, test")
        found = {"before": before, "fit": fit, "shots": shots, "inference_peak_bytes": memory.peak_bytes()}
        write_text(kept, json.dumps(found, default=dataclasses.asdict))
        return found

    def _trained_and_judged(self, judge: Judge, untouched: dict[str, Any]) -> dict[str, Any]:
        seconds = self.train()
        training_peak = memory.peak_bytes()
        self._save_model()
        try:
            after = self.answers(self.task.test, "tuned, test")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted after training; the tuned model is {self.folder}/model, not evaluated") from None
        before = untouched["before"]
        result = self._result() | judged(judge, self.scorer, before, after, untouched["fit"], untouched["shots"])
        result |= {
            "seconds": seconds,
            "seconds_per_step": seconds / max(1, self.optimizer.steps),
            "peak_bytes": training_peak,
            "inference_peak_bytes": untouched["inference_peak_bytes"],
            "seconds_total": time.perf_counter() - self.started,
        }
        self._write(result, list(predictions(self.scorer, judge, before, after)))
        return result

    def attach(self) -> None:
        """The self-check, on the loss, and all that a first step would wait for."""
        self.listen(Progress("self-check", 0.0))
        first = self.batch(self.task.train[: self.settings.batch_size])
        self.optimizer.attach(self.scorer.losses, first, micro_batch=self.micro_batch(first))

    def train(self) -> float:
        """The training loop. Returns its seconds, without those of the evaluations on the dev split."""
        return self.loop.run()

    def step(self, examples: Sequence[Example]) -> float:
        """One step on some examples, the layers that training leaves alone included. Returns its mean loss."""
        if isinstance(self.objective, objectives.GeneratedObjective):
            return float(self.optimizer.step(self.objective.closure(examples)))
        if self.optimizer.short_first:
            examples = sorted(examples, key=self.scorer.length)
        batch = self.batch(examples)
        return float(self.optimizer.step(self.objective, batch, micro_batch=self.micro_batch(batch)))

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Some examples as a step sees them, with the layers that training leaves alone done."""
        return self.scorer.begin(self.scorer.batch(examples, taught=True))

    def answers(self, examples: Sequence[Example], phase: str) -> Answers:
        """What the model as it is now says of some examples, with progress under the name of the phase."""
        new_tokens = self.settings.new_tokens if self.metric is not None else 0
        return evaluation.answers(self.scorer, examples, self.rows, new_tokens, lambda done: self.listen(Progress(phase, done)))

    def rehearse(self) -> dict[str, Any]:
        """What a run would take, by two real steps and an evaluation; nothing is written."""
        settings = self.settings
        self.attach()
        memory.reset_peak()
        seconds = []
        dataset = order.batches([self.scorer.length(e) for e in self.task.train], settings.batch_size, settings.seed)
        for done in (0.0, 0.5):
            self.listen(Progress("rehearsing", done))
            start = time.perf_counter()
            self.step([self.task.train[i] for i in next(dataset)])
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        some = self.task.dev[: self.rows]
        self.answers(some, "evaluating")
        row_seconds = (time.perf_counter() - start) / len(some)
        evaluated = settings.evals * len(self.task.dev) + (2 + bool(settings.shots)) * len(self.task.test)
        evaluated += min(FIT_ROWS, len(self.task.train)) if self.task.spec.kind == "options" else 0
        pace = min(seconds)
        limits = [settings.steps] * bool(settings.steps) + [int(60 * settings.minutes / pace)] * bool(settings.minutes)
        limits += [math.ceil(settings.evaluations / self.optimizer.evaluations)] * bool(settings.evaluations)
        steps = min(limits)
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": self._trained,
            "rows": {name: len(getattr(self.task, name)) for name in ("train", "dev", "test")},
            "seconds_per_step": pace,
            "steps": steps,
            "seconds": steps * pace,
            "evaluation_seconds": evaluated * row_seconds,
            "peak_bytes": memory.peak_bytes(),
            "weight_bytes": self.weight_bytes,
            "files": FILES,
            "run": str(self.folder),
            "disk_bytes": self._disk_bytes,
        }

    @property
    def _disk_bytes(self) -> int:
        """What a run writes at most at a time: its model, and the best and the latest weights with their remainders and State."""
        trained = sum(s.parameter.nbytes + (0 if s.remainder is None else s.remainder.nbytes) for s in self.optimizer.slots)
        saved = trained if self.settings.scheme in schemes.ADAPTERS else self.weight_bytes
        snapshot = trained + self.optimizer.held.bytes
        return saved + snapshot * (1 + (self.settings.keep == "best" and self.settings.evals > 0))

    def _require_room(self) -> None:
        free, needed = shutil.disk_usage(self.parent).free, self._disk_bytes
        if free < needed:
            raise ValueError(
                f"out is {self.folder}; its disk has {free >> 20:,} MB free, and a run writes {needed >> 20:,}; name another folder"
            )

    @property
    def _trained(self) -> int:
        return sum(slot.parameter.numel() for slot in self.optimizer.slots)

    @property
    def is_quick(self) -> bool:
        """Whether the metric needs no generated answers, so that it can be looked at while training goes on."""
        return self.task.spec.kind != "answer"

    def _cautions(self) -> list[str]:
        """What is worth knowing of the settings before a run."""
        settings, said = self.settings, []
        if settings.objective != objectives.LOSS and settings.mix == 1:
            said.append(
                f"{settings.objective} of {settings.batch_size} rows moves in steps of 1/{settings.batch_size}: a step whose "
                "branches score the same teaches nothing; larger --batch-size and --eps, or --mix below 1, help"
            )
        return said

    def _objective(self) -> Any:
        settings = self.settings
        if settings.objective == objectives.LOSS:
            return self.scorer.losses
        metric = metrics.metric(settings.objective)
        if self.task.spec.kind == "answer":
            if METHODS[settings.method].per_example:
                say = f"objective {metric.name} is of generated answers, which are scored a branch at a time"
                raise ValueError(f"{say}; use method mezo")
            return objectives.GeneratedObjective(self.scorer, metric, settings.mix, settings.new_tokens)
        if metric.by_row is None and METHODS[settings.method].per_example:
            say = f"objective {metric.name} is of the rows of a batch together, and method {settings.method} scores them apart"
            raise ValueError(f"{say}; use method mezo")
        return objectives.MetricObjective(self.scorer, metric, settings.mix)

    def _optimizer(self) -> ZerothOrder:
        settings = self.settings
        own = settings.own()
        if own.get("checkpointing"):
            memory.give_back_at_once()
        method: Callable[..., ZerothOrder] = METHODS[settings.method]
        return method(
            self.model,
            lr=self.lr,
            **({"eps": settings.eps} if METHODS[settings.method].perturbs else {}),
            weight_decay=settings.weight_decay,
            storage=runs.storage(settings),
            seed=settings.seed,
            self_check=not self.resume,  # a run that goes on was checked when it began
            **own,
        )

    def micro_batch(self, batch: Batch) -> int:
        """Examples of a batch that a pass takes: all of them where the objective is of a whole batch."""
        if isinstance(self.objective, objectives.MetricObjective) and self.objective.metric.by_row is None:
            return len(batch.labels)
        return self.scorer.at_a_time(batch.ids.shape[1], self.copies)

    def _cache(self) -> HiddenCache | None:
        """Where they are kept, when there are such layers."""
        if self.scorer.prefix is None or self.scorer.device.type != "cpu":
            return None
        few = self.scorer.batch(self.task.train[:2], taught=True)
        sample = self.scorer.prefix.below(few.ids)
        tokens = sum(self.scorer.length(example) for example in self.task.train)
        needed = tokens * len(few.ids) // len(few.labels) * sample.shape[-1] * sample.itemsize
        if self.resume:
            there = bool(recording.read_header(self.folder / recording.NAME).get("cache"))  # as it was decided then
        else:
            there = needed <= shutil.disk_usage(self.parent).free // 4
        about = f"{self.identity} {self.scorer.prefix.depth}"
        return HiddenCache(self.folder, sample.shape[-1], sample.dtype, about, self.resume) if there else None

    def _result(self) -> dict[str, Any]:
        return {
            "model": self.settings.model,
            "task": self.task.name,
            "method": self.settings.method,
            "scheme": self.settings.scheme,
            "objective": self.settings.objective,
            "seed": self.settings.seed,
            "lr": self.lr,
            "weight_bytes": self.weight_bytes,
            "cache_bytes": 0 if self.scorer.cache is None else self.scorer.cache.bytes,
            "trained_parameters": self._trained,
            "run": str(self.folder),
            "versions": {"zerograd": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "state_bytes": self.optimizer.state_bytes,
            "backward_passes": self.optimizer.steps if self.optimizer.takes_backward else 0,
            **loop.found(self.loop),
        }

    def _write(self, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        settings = dataclasses.asdict(self.settings)
        write_text(self.folder / "settings.json", json.dumps(settings, indent=1))
        write_text(self.folder / "task.yaml", self.task.spec.to_yaml())
        write_text(self.folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        shown = result | {"settings": settings, "is_share": metrics.is_share(result["metric"])}
        report.write(self.folder / "report.html", shown, self.loop.history, rows)
        write_text(self.folder / "result.json", json.dumps(result, indent=1))

    def _save_model(self) -> None:
        """Write the tuned model and its tokenizer where plain transformers loads them; an older one is there until then."""
        with new_folder(self.folder / "model") as model:
            self.model.save_pretrained(model)
            self.scorer.tokenizer.save_pretrained(model)


def task_of(settings: TaskSettings) -> Task:
    """The task that settings describe, with its rows. Raises ValueError or FileNotFoundError with the mend."""
    sources = sources_of(settings)
    if settings.task:
        spec = tasks.spec(settings.task)
    else:
        rows = [row for source in sources for row in source.read({})["train"]]
        name = Path(sources[0].name).stem
        spec = columns.from_rows(name, rows, settings.text, settings.label, settings.template, settings.options)
    if settings.chat:
        spec = dataclasses.replace(spec, chat=True)
    return splits.with_rows(spec, sources, settings.dev, settings.test)


def sources_of(settings: TaskSettings) -> list[Source]:
    """Where the training rows are said to come from. Raises ValueError for a weight that is none."""
    return [Source.parse(given) for given in settings.data]


def demonstrations(task: Task, count: int, seed: int) -> list[Example]:
    """Training rows for in-context learning, a function of the seed."""
    return [task.train[i] for i in order.shuffled(len(task.train), seed, DEMONSTRATIONS)[:count]]


def _writable(folder: Path) -> Path:
    """The nearest folder that is there, of a folder to be made. Raises ValueError when it could not be made in it."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"out is {folder}, and {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"out is {folder}, and {there} cannot be written; name a folder that can")
    return there
