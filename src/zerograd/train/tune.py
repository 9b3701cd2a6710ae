"""Fine-tuning with evaluations alone: `tune(settings)` is what the command line runs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import zerograd
from zerograd.optim import METHODS
from zerograd.optim.base import NotFinite, ZerothOrder
from zerograd.text import evaluation, models, schemes, tasks
from zerograd.text.cache import HiddenCache
from zerograd.text.evaluation import Scores
from zerograd.text.prefix import prefix_of
from zerograd.text.scoring import Batch, OptionScorer
from zerograd.text.tasks import Example
from zerograd.train import environment, memory, order, report, statistics
from zerograd.train.files import write_text
from zerograd.train.settings import TuneSettings


@dataclass(frozen=True)
class Progress:
    """What a run tells while it goes on. phase: what it is doing. done: the share of it that is done, in [0, 1]."""

    phase: str
    done: float
    step: int = 0
    loss: float = math.nan
    dev_accuracy: float = math.nan
    examples_per_second: float = math.nan
    seconds_per_step: float = math.nan
    seconds_left: float = math.nan


Listener = Callable[[Progress], None]


class Tuning:
    """A run from model to report. Raises ValueError or FileNotFoundError for what is wrong before anything is written."""

    def __init__(self, settings: TuneSettings, listen: Listener = lambda progress: None) -> None:
        self.settings = settings
        self.listen = listen
        self.started = time.perf_counter()
        environment.prepare()
        torch.set_num_threads(settings.threads or os.cpu_count() or 1)
        self.folder = Path(settings.out or f"runs/{settings.task}-{settings.method}-{settings.seed}")
        self.parent = _writable(self.folder)
        self.task = tasks.load(settings.task)
        for split in ("train", "dev", "test"):
            if not getattr(self.task, split):
                raise ValueError(f"task {settings.task} has no {split} rows; give it some")
        listen(Progress("loading the model", 0.0))
        dtype = torch.float32 if settings.storage == "float32" else torch.bfloat16
        self.model, tokenizer = models.load(settings.model, dtype)
        schemes.select(self.model, settings.scheme, settings.layers)
        self.scorer = OptionScorer(self.model, tokenizer, self.task)
        few = self.scorer.batch(self.task.train[:2])
        self.scorer.prefix = prefix_of(self.model, few.ids)
        self.scorer.cache = self._cache(few)
        own = ("directions", "sides", "rank") if settings.method == "per-example" else ()
        options: dict[str, Any] = {name: getattr(settings, name) for name in own}
        self.optimizer: ZerothOrder = METHODS[settings.method](
            self.model,
            lr=settings.lr,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            distribution=settings.distribution,
            storage=settings.storage,
            seed=settings.seed,
            **options,
        )
        self.copies = self.optimizer.plan(settings.batch_size).copies  # of the batch, in a step
        self.rows = self.copies * settings.batch_size  # of a step, and of an evaluation
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.history: list[dict[str, float]] = []
        self.stopped: str | None = None

    def run(self) -> dict[str, Any]:
        """Train, evaluate before and after, write the run's folder, and return its result."""
        self.attach()
        memory.reset_peak()
        before = self.scores(self.task.test, "zero-shot, test")
        fit = self.scores(self.task.train, "zero-shot, train")
        inference_peak = memory.peak_bytes()
        memory.reset_peak()
        seconds = self.train()
        training_peak = memory.peak_bytes()
        self._save_model()
        try:
            after = self.scores(self.task.test, "tuned, test")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted after training; the tuned model is {self.folder}/model, not evaluated") from None
        result = self._result(before, fit, after) | {
            "seconds": seconds,
            "seconds_per_step": seconds / max(1, self.optimizer.steps),
            "peak_bytes": training_peak,
            "inference_peak_bytes": inference_peak,
            "seconds_total": time.perf_counter() - self.started,
        }
        self._write(result, before, after)
        return result

    def attach(self) -> None:
        """The self-check, and all that a first step would wait for."""
        self.listen(Progress("self-check", 0.0))
        first = self.scorer.batch(self.task.train[: self.settings.batch_size])
        self.optimizer.attach(self.scorer.losses, self.scorer.begin(first), micro_batch=self._micro_batch(first))

    def train(self) -> float:
        """The training loop. Returns its seconds, without those of the evaluations on the dev split."""
        settings = self.settings
        examples = self.task.train
        dataset = order.batches(self._lengths(), settings.batch_size, settings.seed)
        evaluations = iter([(i + 1) / settings.evals for i in range(settings.evals)])
        next_evaluation = next(evaluations, math.inf)
        elapsed = 0.0
        loss = dev = math.nan
        try:
            while (done := self._done(elapsed)) < 1:
                start = time.perf_counter()
                for group in self.optimizer.param_groups:
                    group["lr"] = settings.lr * schedule(settings.schedule, done)
                chosen = next(dataset)
                value = self.step([examples[i] for i in chosen])
                elapsed += time.perf_counter() - start
                loss = value if math.isnan(loss) else 0.9 * loss + 0.1 * value
                record = {"step": self.optimizer.steps, "seconds": elapsed, "loss": value, "lr": group["lr"]}
                if self.optimizer.info is not None:
                    record["spread"] = self.optimizer.info.spread
                done = self._done(elapsed)
                if done >= next_evaluation - 1e-9:
                    scores = evaluation.option_scores(self.scorer, self.task.dev, self.rows)
                    dev = evaluation.accuracy(scores, self.task.dev)
                    record |= {"dev_accuracy": dev, "dev_loss": evaluation.cross_entropy(scores, self.task.dev)}
                    while next_evaluation <= done + 1e-9:
                        next_evaluation = next(evaluations, math.inf)
                self.history.append(record)
                pace = elapsed / self.optimizer.steps
                left = max(0.0, elapsed / done - elapsed) if done > 0 else math.nan
                speed = self.optimizer.steps * len(chosen) / elapsed
                self.listen(Progress("training", min(done, 1.0), self.optimizer.steps, loss, dev, speed, pace, left))
        except KeyboardInterrupt:
            self.stopped = f"interrupted after step {self.optimizer.steps}; the result is of the weights then"
        except NotFinite as error:
            self.stopped = f"ended at step {self.optimizer.steps}: {error}"
        return elapsed

    def step(self, examples: Sequence[Example]) -> float:
        """One step on some examples, the layers that training leaves alone included. Returns its mean loss."""
        batch = self.scorer.begin(self.scorer.batch(examples))
        return float(self.optimizer.step(self.scorer.losses, batch, micro_batch=self._micro_batch(batch)))

    def scores(self, examples: Sequence[Example], phase: str) -> list[list[float]]:
        """The option scores of some examples by the model as it is now, with progress under the name of the phase."""
        return evaluation.option_scores(self.scorer, examples, self.rows, lambda done: self.listen(Progress(phase, done)))

    def _done(self, elapsed: float) -> float:
        """The share of the run that is done: the larger of its share of minutes and of steps."""
        shares = [0.0]
        if self.settings.minutes:
            shares.append(elapsed / (60 * self.settings.minutes))
        if self.settings.steps:
            shares.append(self.optimizer.steps / self.settings.steps)
        return max(shares)

    def _lengths(self) -> list[int]:
        return [len(self.scorer.prompt_ids(example.text)) for example in self.task.train]

    def _micro_batch(self, batch: Batch) -> int:
        return self.scorer.at_a_time(batch.ids.shape[1], self.copies)

    def _cache(self, few: Batch) -> HiddenCache | None:
        """Where the hidden states of frozen layers are kept, when there are such layers and the disk has ample room."""
        if self.scorer.prefix is None:
            return None
        sample = self.scorer.prefix.below(few.ids)
        needed = sum(self._lengths()) * len(few.ids) // len(few.labels) * sample.shape[-1] * sample.itemsize
        if needed > shutil.disk_usage(self.parent).free // 4:
            return None
        return HiddenCache(self.parent, sample.shape[-1], sample.dtype)

    def _result(self, before: Scores, fit: Scores, after: Scores) -> dict[str, Any]:
        test, train = self.task.test, self.task.train
        labels = [e.label for e in test]
        right_before, right_after = evaluation.right(before, test), evaluation.right(after, test)
        threshold = statistics.best_threshold([s[1] - s[0] for s in fit], [e.label for e in train])
        calibrated = [(s[1] - s[0] > threshold) == bool(label) for s, label in zip(before, labels, strict=True)]
        common = max(range(len(self.task.options)), key=[e.label for e in train].count)
        rows = len(test)
        return {
            "model": self.settings.model,
            "task": self.settings.task,
            "method": self.settings.method,
            "scheme": self.settings.scheme,
            "seed": self.settings.seed,
            "accuracy_majority": labels.count(common) / rows,
            "accuracy_before": sum(right_before) / rows,
            "accuracy_calibrated": sum(calibrated) / rows,
            "accuracy_after": sum(right_after) / rows,
            "ci_before": statistics.wilson(sum(right_before), rows),
            "ci_calibrated": statistics.wilson(sum(calibrated), rows),
            "ci_after": statistics.wilson(sum(right_after), rows),
            "ci_gain": statistics.paired(right_before, right_after),
            "ci_gain_calibrated": statistics.paired(calibrated, right_after),
            "threshold": threshold,
            "test_rows": rows,
            "steps": self.optimizer.steps,
            "skipped_steps": self.optimizer.skipped,
            "forwards": self.optimizer.forwards,
            "weight_bytes": self.weight_bytes,
            "cache_bytes": 0 if self.scorer.cache is None else self.scorer.cache.bytes,
            "trained_parameters": sum(slot.parameter.numel() for slot in self.optimizer.slots),
            "stopped": self.stopped,
            "run": str(self.folder),
        }

    def _write(self, result: dict[str, Any], before: Scores, after: Scores) -> None:
        settings = dataclasses.asdict(self.settings)
        versions = {"zerograd": zerograd.__version__, "torch": torch.__version__, "python": platform.python_version()}
        predictions = list(self._predictions(before, after))
        write_text(self.folder / "settings.json", json.dumps(settings, indent=1))
        finite = [{k: v for k, v in row.items() if math.isfinite(v)} for row in self.history]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in finite))
        write_text(self.folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in predictions))
        shown = result | {"settings": settings, "versions": versions}
        report.write(self.folder / "report.html", shown, self.history, predictions)
        write_text(self.folder / "result.json", json.dumps(result, indent=1))

    def _save_model(self) -> None:
        """Write the tuned model and its tokenizer where plain transformers loads them; an older one is there until then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        model, partial = self.folder / "model", self.folder / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.model.save_pretrained(partial)
        self.scorer.tokenizer.save_pretrained(partial)
        shutil.rmtree(model, ignore_errors=True)
        partial.rename(model)

    def _predictions(self, before: Scores, after: Scores) -> Iterator[dict[str, Any]]:
        best, margin = evaluation.best, evaluation.margin
        options = [option.strip() for option in self.task.options]
        for example, old, new in zip(self.task.test, before, after, strict=True):
            yield {
                "id": example.id,
                "text": example.text,
                "label": example.label,
                "option_before": options[best(old)],
                "option_after": options[best(new)],
                "right_before": best(old) == example.label,
                "right_after": best(new) == example.label,
                "margin_before": margin(old, example.label),
                "margin_after": margin(new, example.label),
            }


def schedule(name: str, done: float) -> float:
    """What the learning rate is multiplied by when a share `done` of the run is done."""
    if name == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1.0


def _writable(folder: Path) -> Path:
    """The nearest folder that is there, of a folder to be made. Raises ValueError when it could not be made in it."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"out is {folder}, and {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"out is {folder}, and {there} cannot be written; name a folder that can")
    return there
