"""What a run is: the task, the model that is asked, what is minimised, the optimiser, and the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from zerograd.journal import identity
from zerograd.machine import environment, memory, workers
from zerograd.optim import METHODS
from zerograd.optim.base import ZerothOrder
from zerograd.text import evaluation
from zerograd.text.data.tasks import Example, Task
from zerograd.text.evaluation import Answers
from zerograd.text.judge import metric_of
from zerograd.text.metrics import Metric
from zerograd.text.models import loading, schemes
from zerograd.text.objectives import LOSS, Objective, objective
from zerograd.text.scoring import Batch, Scorer
from zerograd.tune.base_model import base_model, storage_of
from zerograd.tune.data_summary import data_summary
from zerograd.tune.defaults import default_lr
from zerograd.tune.folder import existing_parent, require_disk, require_free
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.settings import TuneSettings
from zerograd.tune.task import task_of


@dataclass
class Setup:
    """What a run is, made by `set_up`.

    settings: with lr and eps filled in, lr perhaps still AUTO. metric: what is reported; None for the log-likelihood of free
    answers. identity: a hash of the base model's weights. lr: the learning rate before schedule and back-offs. resumes: the folder
    has a run that was cut off, and this one goes on with it. started: when the setting up began, in seconds of `time.perf_counter`.
    """

    settings: TuneSettings
    task: Task
    folder: Path
    metric: Metric | None
    scorer: Scorer
    identity: str
    objective: Objective
    optimizer: ZerothOrder
    lr: float
    resumes: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self.scorer.model

    @cached_property
    def copies(self) -> int:
        """How often a pass of a step repeats the batch."""
        return self.optimizer.copies

    @property
    def rows(self) -> int:
        """Rows of a step, and of a pass that evaluates."""
        return self.copies * self.settings.batch_size

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the model's parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(slot.parameter.numel() for slot in self.optimizer.slots)

    @property
    def disk_bytes(self) -> int:
        """The most bytes that the run's folder takes: the model, and the best and the latest weights with remainders and State."""
        trained = sum(s.parameter.nbytes + (0 if s.remainder is None else s.remainder.nbytes) for s in self.optimizer.slots)
        saved = trained if self.settings.scheme in schemes.ADAPTERS else self.weight_bytes
        snapshot = trained + self.optimizer.held.bytes
        return saved + snapshot * (1 + (self.settings.keep == "best" and self.settings.evals > 0))

    @property
    def dev_metric(self) -> Metric | None:
        """The metric, where it can be computed on the dev split during training: it needs no generated answers."""
        return None if self.task.spec.kind == "answer" else self.metric

    @property
    def refuses_steps(self) -> bool:
        """Whether the method itself may refuse a step, so that an unchanged loss says nothing of eps."""
        return type(self.optimizer).reconsidered is not ZerothOrder.reconsidered

    def warm_up(self, listen: Listener = ignore_progress) -> None:
        """Run the self-check, on the loss, and everything else that a first step would wait for."""
        listen(Progress("self-check", 0.0))
        first = self.batch(self.task.train[: self.settings.batch_size])
        self.optimizer.attach(self.scorer.losses, first, micro_batch=self.micro_batch(first))

    def step(self, examples: Sequence[Example]) -> float:
        """Take one step on some examples. Returns its mean loss."""
        if self.objective.by_closure:
            return float(self.optimizer.step(self.objective.closure(examples)))
        if self.optimizer.short_first:
            examples = sorted(examples, key=self.scorer.length)
        batch = self.batch(examples)
        return float(self.optimizer.step(self.objective, batch, micro_batch=self.micro_batch(batch)))

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as a step takes them: the layers that training leaves alone have been run."""
        return self.scorer.begin(self.scorer.batch(examples, taught=True))

    def micro_batch(self, batch: Batch) -> int:
        """How many examples of a batch a pass takes: all of them where the objective is of a whole batch."""
        if self.objective.whole_batch:
            return len(batch.labels)
        return self.scorer.at_a_time(batch.ids.shape[1], self.copies)

    def answers(self, examples: Sequence[Example], phase: str, listen: Listener = ignore_progress) -> Answers:
        """What the model answers now. phase: what progress calls the evaluation."""
        new_tokens = self.settings.new_tokens if self.metric is not None else 0
        return evaluation.answers(self.scorer, examples, self.rows, new_tokens, lambda done: listen(Progress(phase, done)))


def set_up(
    settings: TuneSettings,
    listen: Listener = ignore_progress,
    say: Callable[[str], None] = lambda line: None,
    *,
    resume: bool = False,
    self_check: bool | None = None,
) -> Setup:
    """Read the data, load the model, and build objective and optimiser; nothing is written.

    listen: takes progress. say: takes what is worth knowing of data and settings, line by line. resume: the run goes on with the
    one in its folder. self_check: whether the first step compares the forward pass with really perturbed weights; None for every
    run but one that is resumed, which was checked when it began.
    Raises ValueError or FileNotFoundError for what is wrong with the settings, the data, the model or the folder.
    """
    started = time.perf_counter()
    settings = settings.resolved()
    environment.prepare()
    workers.use(settings.threads)
    loading.device_of(settings.device)  # refused before any work
    listen(Progress("reading the data", 0.0))
    task = task_of(settings)
    folder = Path(settings.out or f"runs/{task.name}-{settings.method}-{settings.seed}")
    existing_parent(folder)
    if not resume:
        require_free(folder)
    metric = metric_of(settings.metric or ("" if settings.objective == LOSS else settings.objective), task.spec)
    listen(Progress("loading the model", 0.0))
    scorer = _scorer(settings, task)
    base = identity(scorer.model)  # before an optimiser touches the weights
    goal = _objective(settings, scorer)
    lr = settings.lr if isinstance(settings.lr, float | int) else default_lr(settings.method, settings.scheme)
    optimizer = _optimizer(settings, scorer.model, lr, not resume if self_check is None else self_check)
    setup = Setup(settings, task, folder, metric, scorer, base, goal, optimizer, lr, resume, started)
    if not resume:
        require_disk(folder, setup.disk_bytes)
    for line in data_summary(scorer) + _cautions(settings):
        say(line)
    return setup


def _scorer(settings: TuneSettings, task: Task) -> Scorer:
    """The model that the run begins from, asked the task."""
    loaded = base_model(settings)
    scorer = Scorer(loaded.model, loaded.tokenizer, task, loaded.head, settings.max_tokens)
    scorer.settle(task.train[:2])
    if settings.scheme not in schemes.ADAPTERS:
        scorer.cut(task.train[:2])
    return scorer


def _objective(settings: TuneSettings, scorer: Scorer) -> Objective:
    """What is minimised. Raises ValueError where the method cannot score it."""
    made = objective(settings.objective, scorer, settings.mix, settings.new_tokens)
    if METHODS[settings.method].per_example and made.by_closure:
        say = f"objective {settings.objective} is of generated answers, which are scored a branch at a time"
        raise ValueError(f"{say}; use method mezo")
    if METHODS[settings.method].per_example and made.whole_batch:
        say = f"objective {settings.objective} is of the rows of a batch together, and method {settings.method} scores them apart"
        raise ValueError(f"{say}; use method mezo")
    return made


def _optimizer(settings: TuneSettings, model: Any, lr: float, self_check: bool) -> ZerothOrder:
    options = settings.own_options()
    if options.get("checkpointing"):
        memory.give_back_at_once()
    method: Callable[..., ZerothOrder] = METHODS[settings.method]
    return method(
        model,
        lr=lr,
        **({} if settings.eps is None else {"eps": settings.eps}),
        weight_decay=settings.weight_decay,
        storage=storage_of(settings),
        seed=settings.seed,
        self_check=self_check,
        **options,
    )


def _cautions(settings: TuneSettings) -> list[str]:
    """What is worth knowing of the settings before a run."""
    if settings.objective == LOSS or settings.mix < 1:
        return []
    return [
        f"{settings.objective} of {settings.batch_size} rows moves in steps of 1/{settings.batch_size}: a step whose "
        "branches score the same teaches nothing; larger --batch-size and --eps, or --mix below 1, help"
    ]
