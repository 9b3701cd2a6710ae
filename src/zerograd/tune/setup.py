"""The parts of a run: task, model, objective, optimiser and folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from zerograd.journal import identity
from zerograd.machine import environment, memory, workers
from zerograd.optim import METHODS, method_of
from zerograd.optim.base import Asked, ZerothOrder
from zerograd.quantised import Gain
from zerograd.quantised.models import base_of, weight_bytes
from zerograd.quantised.write import require_writable
from zerograd.queries import Query
from zerograd.rewards import Prompt, RewardObjective
from zerograd.rewards.evaluator import ScoredAnswers
from zerograd.rewards.metrics import answered, of_metric
from zerograd.rewards.task import prompts_of, rewards_of
from zerograd.spaces.collect import named_parameters
from zerograd.text import evaluation
from zerograd.text.data.tasks import Example, Task
from zerograd.text.evaluation import Answers
from zerograd.text.generation import Generator
from zerograd.text.judge import metric_of
from zerograd.text.metrics import Metric
from zerograd.text.models import loading, schemes
from zerograd.text.objectives import LOSS, GeneratedObjective, Objective, objective
from zerograd.text.sampling import Noise, Sampling
from zerograd.text.scoring import Batch, Scorer
from zerograd.tune.base_model import base_model, precision_of
from zerograd.tune.data_summary import data_summary
from zerograd.tune.defaults import default_lr, scheme_scale
from zerograd.tune.folder import existing_parent, require_disk, require_free
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.settings import TuneSettings
from zerograd.tune.task import task_of

EVALUATION_STEP = 2**32 - 1
"""The step that names the noise of sampled answers in evaluations; training does not reach it."""


ADAPTER_RATE, ADAPTER_RADIUS = 0.1, 0.2
"""Of an adapter that is trained beside gains, as multiples of those that it has alone: a direction perturbs both, and what the
adapter adds to the losses is noise to the gains (docs/quantised.md).
"""


@dataclass
class Setup:
    """The parts of a run, made by `set_up`.

    settings: with lr and eps filled in; lr may still be AUTO. metric: the reported metric; None for the log-likelihood
    of free answers. identity: a hash of the base model's weights. lr: the learning rate before schedule and back-offs.
    resumes: whether this run continues the one in its folder. started: the `time.perf_counter` when `set_up` began.
    """

    settings: TuneSettings
    task: Task
    folder: Path
    metric: Metric | None
    scorer: Scorer
    identity: str
    objective: Objective | RewardObjective
    optimizer: ZerothOrder
    lr: float
    resumes: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self.scorer.model

    @cached_property
    def branches(self) -> int:
        """The number of branches of a step: how often its forward pass repeats the batch."""
        return self.optimizer.branches

    @property
    def rows(self) -> int:
        """Rows of a step, branches included; evaluations use passes of the same size."""
        return self.branches * self.settings.batch_size

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the model's tensors, packed matrices as they are."""
        return weight_bytes(self.model)

    @property
    def trained_parameters(self) -> int:
        """The number of trained parameters."""
        return sum(space.numel for space in self.optimizer.spaces)

    @property
    def disk_bytes(self) -> int:
        """The most bytes of the run's folder: the model, and snapshots of the best and the latest weights with the
        optimiser's memory.
        """
        trained = sum(space.nbytes for space in self.optimizer.spaces)
        saved = trained if self.settings.scheme in schemes.ADAPTERS else max(self.weight_bytes, _file_bytes(self.model))
        snapshot = trained + self.optimizer.memory.nbytes
        return saved + snapshot * (1 + (self.settings.keep == "best" and self.settings.evals > 0))

    @property
    def dev_metric(self) -> Metric | None:
        """The metric on the dev split during training; None if it needs generated answers."""
        return None if self.task.spec.kind in ("answer", "open") else self.metric

    @property
    def refuses_steps(self) -> bool:
        """Whether the method may refuse a step, so that an unchanged loss does not mean that eps is too small."""
        return type(self.optimizer.method.query).refine is not Query.refine

    def warm_up(self, listen: Listener = ignore_progress) -> None:
        """Run the self-check on the loss, and compile everything that the first step needs."""
        listen(Progress("self-check", 0.0))
        if self.task.spec.open:
            self.optimizer.attach(self.objective, self.prompts(self.task.train[: self.settings.batch_size]))
            return
        first = self.batch(self.task.train[: self.settings.batch_size])
        self.optimizer.attach(self.scorer.losses, first, micro_batch=self.micro_batch(first))

    def ask(self, examples: Sequence[Example]) -> Asked:
        """Begin a step of a run on rewards: the answers are made, and their rewards are awaited when it is told."""
        return self.optimizer.ask(self.objective, self.prompts(examples), micro_batch="auto")

    def step(self, examples: Sequence[Example]) -> float:
        """Take one step on some examples. Returns its mean loss."""
        if isinstance(self.objective, RewardObjective):
            return self.optimizer.tell(self.ask(examples))
        if self.objective.by_closure:
            return float(self.optimizer.step(self.objective.closure(examples)))
        if self.optimizer.method.wants_short_first:
            examples = sorted(examples, key=self.scorer.length)
        batch = self.batch(examples)
        return float(self.optimizer.step(self.objective, batch, micro_batch=self.micro_batch(batch)))

    def prompts(self, examples: Sequence[Example]) -> list[Prompt]:
        """Examples as prompts of a run on rewards, or on a metric of each row's answer."""
        if not self.task.spec.open:
            return answered(self.scorer, examples, self.settings.new_tokens)
        return prompts_of(self.scorer, examples, self.settings.new_tokens)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as a batch for a step, with the layers below the first trained one already run."""
        return self.scorer.run_prefix(self.scorer.batch(examples, for_training=True))

    def micro_batch(self, batch: Batch) -> int:
        """Examples of a forward pass; all of the batch if the objective needs the whole batch."""
        if not isinstance(self.objective, RewardObjective) and self.objective.whole_batch:
            return len(batch.labels)
        return self.scorer.examples_per_pass(batch.ids.shape[1], self.branches)

    def dev_answers(self) -> Answers:
        """The answers to the dev rows; free ones are not generated, unless a reward scores them."""
        if self.task.spec.open:
            return self.answers(self.task.dev, "dev")
        return evaluation.answers(self.scorer, self.task.dev, self.rows)

    def answers(self, examples: Sequence[Example], phase: str, listen: Listener = ignore_progress) -> Answers:
        """The model's answers now. phase: the name of the evaluation in the progress."""
        if isinstance(self.objective, RewardObjective) and self.task.spec.open:
            noise = Noise(self.settings.seed, EVALUATION_STEP) if self.settings.temperature else None
            made = self.objective.plain(self.prompts(examples), noise, lambda done: listen(Progress(phase, done)))
            return as_answers(made, self.objective.rewards.names)
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

    listen: takes progress. say: takes lines about data and settings. resume: continue the run in the settings' folder.
    self_check: whether the first step compares the perturbed forward pass with weights perturbed in place; by default
    every run does but a resumed one, which did so when it began.
    Raises ValueError or FileNotFoundError for wrong settings, data, model or folder.
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
    scorer = _scorer(settings, task, say)
    if settings.reward:
        prompts_of(scorer, (*task.train, *task.dev, *task.test), settings.new_tokens)  # refuses one that is too long
    for example in (*task.dev, *task.test):  # `data_summary` takes those of the training rows
        scorer.length(example)  # refuses a row before anything is evaluated or written
    base = identity(scorer.model)  # before an optimiser touches the weights
    goal = reward_objective(settings, scorer) if settings.reward else _objective(settings, scorer)
    lr = settings.lr if isinstance(settings.lr, float | int) else default_lr(settings.method, settings.scheme)
    optimizer = _optimizer(settings, scorer.model, lr, not resume if self_check is None else self_check)
    setup = Setup(settings, task, folder, metric, scorer, base, goal, optimizer, lr, resume, started)
    if not resume:
        require_disk(folder, setup.disk_bytes)
    for line in data_summary(scorer) + _cautions(settings):
        say(line)
    return setup


def _scorer(settings: TuneSettings, task: Task, say: Callable[[str], None]) -> Scorer:
    """The scorer of the base model on the task."""
    loaded = base_model(settings, labels=task.options, say=say)
    if base_of(loaded.model) is not None:
        require_writable(loaded.model, settings.gguf_type)
    if loaded.fresh:
        say(f"the model's head for {len(task.options)} labels is new and is trained with the rest")
    if task.spec.open and loaded.head not in ("causal", "seq2seq"):
        raise ValueError(f"reward needs a model that writes answers, and this one's head is {loaded.head}; choose another model")
    scorer = Scorer(loaded.model, loaded.tokenizer, task, loaded.head, settings.max_tokens)
    if task.spec.open:
        return scorer
    scorer.choose_head_path(task.train[:2])
    if settings.scheme not in schemes.ADAPTERS:
        scorer.share_prefix(task.train[:2])
    return scorer


def reward_objective(settings: TuneSettings, scorer: Scorer, state: Callable[[], Any] = lambda: None) -> RewardObjective:
    """The objective of a run on rewards. state: gives what functions take as `trainer_state`."""
    rewards = rewards_of(settings.reward, settings.weights_of_rewards())
    sampling = Sampling(settings.new_tokens, settings.temperature, settings.top_k, settings.top_p)
    return RewardObjective(Generator.of(scorer), scorer.tokenizer, rewards, sampling, state, in_background=settings.lag > 0)


def as_answers(made: ScoredAnswers, names: Sequence[str]) -> Answers:
    """Plain answers with their rewards, one a row, as evaluations have them."""
    values = {name: column.tolist() for name, column in zip(names, made.values[:, 0].T, strict=True)}
    losses = (-made.totals[:, 0]).nan_to_num(0.0).tolist()
    columns = {name: list(map(_plain, said)) for name, said in made.extra.items() if len(said) == len(losses)}
    return Answers([texts[0] for texts in made.texts], losses, [], values, [len(ids[0]) for ids in made.ids], columns)


def _plain(value: Any) -> Any:
    """A value that a reward function said, as JSON has it: itself, or its text."""
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _objective(settings: TuneSettings, scorer: Scorer) -> Objective | RewardObjective:
    """The objective of the run. Raises ValueError if the method cannot score it."""
    chosen = objective(settings.objective, scorer, settings.mix, settings.new_tokens)
    if isinstance(chosen, GeneratedObjective) and chosen.metric.by_row is not None:
        return of_metric(scorer, chosen.metric, settings.new_tokens, settings.mix)
    per_example = method_of(settings.method).per_example
    if per_example and chosen.by_closure:
        problem = f"objective {settings.objective} scores generated answers, one branch at a time"
        raise ValueError(f"{problem}; use method mezo")
    if per_example and chosen.whole_batch:
        problem = f"objective {settings.objective} is one number per batch, and method {settings.method} needs one per row"
        raise ValueError(f"{problem}; use method mezo")
    return chosen


def _optimizer(settings: TuneSettings, model: Any, lr: float, self_check: bool) -> ZerothOrder:
    options = settings.own_options()
    if options.get("checkpointing"):
        memory.give_back_at_once()
    method: Callable[..., ZerothOrder] = METHODS[settings.method]
    return method(
        _two_groups(settings, model, lr) if settings.scheme == "scales-lora" else model,
        lr=lr,
        **({} if settings.eps is None else {"eps": settings.eps}),
        weight_decay=settings.weight_decay,
        precision=precision_of(settings),
        seed=settings.seed,
        self_check=self_check,
        **options,
    )


def _two_groups(settings: TuneSettings, model: Any, lr: float) -> list[dict[str, Any]]:
    """The adapter's tensors, with a share of their own rate and radius, and the gains with those of the scheme `scales`."""
    named = [(name, p, owner) for name, p, owner in named_parameters(model) if p.requires_grad]
    gains = [one for one in named if isinstance(one[1], Gain)]
    factor = default_lr(settings.method, "scales") / default_lr(settings.method, "lora")
    group: dict[str, Any] = {"params": gains, "lr": lr * factor, "lr_factor": factor}
    rest: dict[str, Any] = {
        "params": [one for one in named if not isinstance(one[1], Gain)],
        "lr": lr * ADAPTER_RATE,
        "lr_factor": ADAPTER_RATE,
    }
    if settings.eps is not None:
        group["eps"], rest["eps"] = settings.eps * scheme_scale("scales"), settings.eps * ADAPTER_RADIUS
    return [rest, group]


def _file_bytes(model: Any) -> int:
    """Bytes of the file that a packed model came from; 0 for other models."""
    base = base_of(model)
    return 0 if base is None else base.header.path.stat().st_size


def _cautions(settings: TuneSettings) -> list[str]:
    """Lines about settings that may slow learning down."""
    if settings.objective == LOSS or settings.mix < 1:
        return []
    return [
        f"{settings.objective} of {settings.batch_size} rows changes in steps of 1/{settings.batch_size}: a step whose "
        "branches all have the same score has no signal; a larger --batch-size or --eps, or --mix below 1, helps"
    ]
