"""What every method shares: torch's optimiser protocol around one chain.

    directions -> plan -> perturbed forward -> scores -> coefficients -> update

A method says which plan it wants, which family its directions have, and how scores become multipliers.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from torch import nn

from zerograd.directions.family import Directions, Family
from zerograd.evaluate import batch as batches
from zerograd.evaluate.micro_batch import Fit
from zerograd.evaluate.score import Closure, Objective, score_batch, score_closure
from zerograd.evaluate.self_check import self_check
from zerograd.machine.interrupts import uninterrupted
from zerograd.optim.groups import grouped, require_in_range
from zerograd.queries import plan as plans
from zerograd.queries.plan import Plan
from zerograd.spaces import weights
from zerograd.update import apply
from zerograd.update.state import State

SKIPS_BEFORE_ERROR = 10

ROUNDING, ROUNDING_16 = 1e-5, 2e-3
"""Differences of two equal runs, relative to the loss, that libraries explain, in float32 and in 16-bit models: the order of a
product's sums may depend on where its operands lie in memory."""

ROUNDING_WALK = 0.0024
"""The rms change of a weight by one stochastic rounding to bfloat16, relative to the weight: sqrt(1/6) of the mean spacing."""


class NotFinite(RuntimeError):
    """The loss has been NaN or infinite for too many steps in a row."""


class NotPure(ValueError):
    """The objective gives different losses for the same weights and batch."""


@dataclass(frozen=True)
class Info:
    """What a step did, for logs: nothing here is needed to go on.

    loss: mean loss of the evaluated branches. difference: mean over directions of eps times the derivative. spread: its
    standard deviation, NaN for one direction. skipped: the loss was not finite and nothing was updated. flat: all branches scored
    the same.
    """

    loss: float
    difference: float
    spread: float
    skipped: bool
    flat: bool = False


class Common(TypedDict, total=False):
    """What every method takes beside its own settings.

    weight_decay: decoupled, at least 0. relative: a unit of direction is each tensor's rms, so eps and lr are relative changes;
    False is what papers mean. storage: "float32", "split", "bfloat16", or None to choose by the parameters' dtype; see
    `spaces.weights`. seed: 0 <= seed < 2**64; with the step number it names every direction. self_check: compare the perturbed
    forward with really perturbed weights at the first step(objective, batch); "full" checks every tensor, True each kind of tensor.
    """

    weight_decay: float
    relative: bool
    storage: str | None
    seed: int
    self_check: bool | str


class ZerothOrder(torch.optim.Optimizer, ABC):
    """Base of the methods; see `MeZO` and `PerExample` for what a user holds.

    steps: taken so far, skipped ones too. forwards: how often the model was evaluated on the batch, once a branch. fit: what a
    pass may hold of memory, `fit.memory` in bytes. record: hears what each step does, before it does it; what it raises ends the
    step with the weights as they were. held: what the method keeps. chosen: the settings that `parts` takes.
    Subclasses set `per_example` and RATE, and say what `plan`, `differences` and `multipliers` are, and with `parts` what a
    direction is and what is kept, where that is more than MeZO's.
    """

    RATE: ClassVar[float]
    """The learning rate to begin with when directions are relative."""

    ADAPTER_RATE: ClassVar[float | None] = None
    """That of adapters, where it is another."""

    per_example: ClassVar[bool] = False
    """Whether it needs a loss an example, so that it cannot step on a closure."""

    perturbs: ClassVar[bool] = True
    """Whether it evaluates perturbed models, with a smoothing radius."""

    takes_backward: ClassVar[bool] = False
    """Whether it takes backward passes, whose gradients no journal holds."""

    short_first: ClassVar[bool] = False
    """Whether the first examples of a batch should be its shortest."""

    family: Family
    held: State
    chosen: dict[str, Any]
    slots: list[weights.Slot]
    seed: int
    steps: int
    skipped: int
    forwards: float
    info: Info | None
    record: Callable[[apply.Step | apply.Skip], None] | None
    self_check: bool | str
    fit: Fit
    _skips_in_row: int
    _checked: bool

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        chosen: dict[str, Any],
        *,
        lr: float,
        eps: float,
        weight_decay: float = 0.0,
        relative: bool = True,
        storage: str | None = None,
        seed: int = 0,
        self_check: bool | str = True,
    ) -> None:
        self.chosen = chosen
        self.family, self.held = self.parts(**chosen)
        if not isinstance(seed, Integral) or not 0 <= seed < 1 << 64:
            raise ValueError(f"seed {seed} is not an integer in 0 .. 2**64 - 1; choose one")
        if self_check not in (True, False, "full"):
            raise ValueError(f"self_check is {self_check!r}; it must be True, False or 'full'")
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        groups = grouped(params)
        for group in groups:
            require_in_range(defaults | group)
        self.slots = weights.collect([pair for group in groups for pair in group.pop("named")], storage)
        weights.set_scale(self.slots, relative)
        by_id = {id(slot.parameter): slot for slot in self.slots}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) in by_id]
        super().__init__([group for group in groups if group["params"]], defaults)
        self.held.begin(self.slots, len(self.param_groups))
        self.family.begin(self.slots)
        self.seed = int(seed)
        self.steps = 0
        self.skipped = 0
        self.forwards = 0
        self.info = None
        self.record = None
        self._skips_in_row = 0
        self.self_check = self_check
        self._checked = False
        self.fit = Fit()
        if any(slot.stochastic for slot in self.slots):
            warnings.warn(
                f"bfloat16 storage rounds at random: unbiased, but a walk of up to {100 * ROUNDING_WALK:.2f} % of a weight a step, "
                f"{100 * ROUNDING_WALK * 1000**0.5:.0f} % after 1,000 steps; storage 'split' has none",
                stacklevel=_outside(),
            )

    @property
    def copies(self) -> int:
        """How often a pass repeats the batch, at most."""
        return self.plan(1).copies

    @property
    def evaluations(self) -> float:
        """How often a step evaluates the batch, each branch counted, and a backward pass as two."""
        return self.plan(1).copies

    @property
    def state_bytes(self) -> int:
        """What the method keeps from step to step, beside the weights and their remainders."""
        return self.held.bytes + self.family.bytes

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        """What a direction is, and what is kept: all that a replay needs. Raises ValueError for a setting out of range."""
        return Family(**chosen), State()

    @abstractmethod
    def plan(self, examples: int) -> Plan:
        """Which direction each expanded example sees."""

    @abstractmethod
    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        """eps times the derivative along each direction, from the scores of the expanded examples: float32 (directions,)."""

    def loss_of(self, scores: torch.Tensor) -> float:
        """The mean loss of the branches."""
        return float(scores.mean())

    @abstractmethod
    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """What each direction is multiplied by in a group's update, or in the estimate that State takes: float32 (directions,)."""

    def slopes(self, differences: torch.Tensor) -> torch.Tensor:
        """Those of the differences that are eps times a derivative, for `Info`."""
        return differences

    def reconsidered(self, differences: torch.Tensor, plan: Plan, score: Callable[[Plan], torch.Tensor]) -> torch.Tensor:
        """The differences, after more evaluations on the same batch. plan: the one that gave them. score: the scores of another."""
        return differences

    def step(  # type: ignore[override]
        self, closure: Any, batch: Any = None, *, examples: int | None = None, micro_batch: int | str | None = None
    ) -> Any:
        """One step.

        step(closure): torch's protocol; the closure takes nothing, is pure, and returns a scalar loss.
        step(objective, batch): objective(batch) returns one loss an example, shape (examples,), or (sums, weights) of
        that shape whose quotient of totals is the loss. The branches ride the batch.
        examples: how many the batch has, when a tensor that does not hold examples is in it.
        micro_batch: how many of them are evaluated at a time, at least 1; all by default; "auto" takes as many as fit in
        `fit.memory`, by measurement. Whenever memory runs out half as many are tried.
        Returns the mean loss of the branches, a float.
        Raises NotPure, NotFinite, SelfCheckFailed or UnresolvedOperation; weights are then as they were.
        """
        require_counts(batch, examples, micro_batch)
        directions = self._directions()
        if batch is None:
            self._check_closure(closure, directions)
            score = functools.partial(self._closure_scores, closure, directions)
            plan = self.plan(1)
        else:
            count = examples or batches.examples(batch)
            self._check_batch(closure, batch, directions, count, micro_batch)
            score = functools.partial(self._batch_scores, closure, batch, directions, micro_batch)
            plan = self.plan(count)
        scores = score(plan)
        loss = self.loss_of(scores)
        differences = self.reconsidered(self.differences(scores), plan, score)
        if not math.isfinite(loss) or not bool(torch.isfinite(differences).all()):
            self._skip(loss)
            return loss
        self._skips_in_row = 0
        step = self._step_of(loss, differences)
        with uninterrupted():
            if self.record is not None:
                self.record(step)
            resolved = self.held.resolved([step], self.seed)
            for slot, group in zip(self.slots, self.group_of, strict=True):
                self.held.update(slot, self.family, self.seed, resolved, group)
            self.steps += 1
        slopes = self.slopes(differences)
        spread = float(slopes.std()) if len(slopes) > 1 else math.nan
        self.info = Info(loss, float(slopes.mean()), spread, False, not differences.any())
        return loss

    def attach(
        self, objective: Objective, batch: Any, *, examples: int | None = None, micro_batch: int | str | None = None
    ) -> None:
        """Do now what steps should not pay for: the checks of the first one, and a rehearsal that loads every kernel.

        The rehearsal evaluates the first step's plan and adds none of its directions.
        Raises NotPure, SelfCheckFailed or UnresolvedOperation. Weights stay as they are.
        """
        require_counts(batch, examples, micro_batch)
        directions, count = self._directions(), examples or batches.examples(batch)
        self._check_batch(objective, batch, directions, count, micro_batch)
        scores = self._batch_scores(objective, batch, directions, micro_batch, self.plan(count))
        ids = range(len(self.differences(scores)))
        with uninterrupted():
            for slot in self.slots:
                apply.update(slot, directions, ids, [0.0] * len(ids), 1.0)

    def evaluate(self, objective: Objective, batch: Any, *, examples: int | None = None) -> torch.Tensor:
        """The unperturbed losses of a batch, through the same forward that steps use."""
        count = examples or batches.examples(batch)
        return score_batch(self.slots, Directions(self.family, self.seed, self.steps), plans.clean(count), objective, batch)

    def go_on(self, steps: int, skipped: int, skips_in_row: int) -> None:
        """Count as if so many steps had been taken, so many of them skipped, and so many of those at the end."""
        self.steps, self.skipped, self._skips_in_row = steps, skipped, skips_in_row

    @property
    def is_stuck(self) -> bool:
        """Whether so many steps in a row were skipped that `step` raises NotFinite when the next one is too."""
        return self._skips_in_row >= SKIPS_BEFORE_ERROR

    @property
    def _told(self) -> dict[str, Any]:
        """What is chosen, but for tensors, whose effect is in State."""
        return {name: value for name, value in self.chosen.items() if not isinstance(value, Mapping)}

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict, and what makes the next step the same: seed, step, scales and remainders."""
        saved = super().state_dict()
        saved["zerograd"] = {
            "seed": self.seed,
            "steps": self.steps,
            "skipped": self.skipped,
            "skips_in_row": self._skips_in_row,
            "forwards": self.forwards,
            "chosen": self._told,
            "slots": weights.state(self.slots),
            "state": {name: tensor.clone() for name, tensor in self.held.tensors.items()},
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, or nothing of it.

        Raises KeyError when a tensor is missing, ValueError when one was stored otherwise, or groups, State or the settings that
        say what a direction is are others.
        """
        if "zerograd" not in state_dict:
            raise KeyError("the saved state is not of a zerograd optimiser: it has no entry 'zerograd'")
        ours = state_dict["zerograd"]
        if ours["chosen"] != self._told:
            raise ValueError(
                f"the saved run has settings {ours['chosen']}, and this one {self._told}; build the optimiser as it was"
            )
        weights.require_loadable(self.slots, ours["slots"])
        self.held.require_loadable(ours["state"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zerograd"})
        weights.load_state(self.slots, ours["slots"])
        self.held.load(ours["state"])
        self.seed, self.steps = ours["seed"], ours["steps"]
        self.skipped, self._skips_in_row, self.forwards = ours["skipped"], ours["skips_in_row"], ours["forwards"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimiser is built: tensor ids belong to the run. Raises ValueError."""
        if hasattr(self, "steps"):
            raise ValueError("a group cannot be added to a run that has begun; build a new optimiser with all groups")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def _closure_scores(self, closure: Closure, directions: Directions, plan: Plan) -> torch.Tensor:
        self.forwards += plan.copies
        return score_closure(self._touched, directions, plan, closure)

    def _batch_scores(
        self, objective: Objective, batch: Any, directions: Directions, micro_batch: int | str | None, plan: Plan
    ) -> torch.Tensor:
        self.forwards += plan.copies
        return score_batch(self._touched, directions, plan, objective, batch, micro_batch=micro_batch, fit=self.fit)

    @property
    def _touched(self) -> list[weights.Slot]:
        """What the next step's directions have anything in."""
        return [slot for slot in self.slots if self.family.touches(slot, self.seed, self.steps)]

    def _directions(self) -> Directions:
        """The directions of the next step."""
        for slot, group in zip(self.slots, self.group_of, strict=True):
            slot.eps = self.param_groups[group]["eps"]
        return Directions(self.family, self.seed, self.steps)

    @property
    def group_of(self) -> list[int]:
        """Which group each slot belongs to."""
        found = {id(p): i for i, group in enumerate(self.param_groups) for p in group["params"]}
        return [found[id(slot.parameter)] for slot in self.slots]

    def _check_closure(self, closure: Closure, directions: Directions) -> None:
        if self.per_example:
            raise ValueError(f"{type(self).__name__} needs step(objective, batch): a closure's scalar hides the examples")
        if not self._checked:
            self._check(
                lambda: score_closure(self.slots, directions, plans.branch(0, 0), closure),
                directions,
                plans.branch(0, 1),
                lambda slots: score_closure(slots, directions, plans.branch(0, 1), closure),
                lambda: score_closure([], directions, plans.branch(0, 0), closure),
            )

    def _check_batch(
        self, objective: Objective, batch: Any, directions: Directions, count: int, micro_batch: int | str | None
    ) -> None:
        if not self._checked:
            few = min(2, count)
            size = micro_batch if isinstance(micro_batch, int) else None
            self._check(
                lambda: score_batch(self.slots, directions, plans.clean(count), objective, batch, micro_batch=size, fit=self.fit),
                directions,
                plans.trial(few),
                lambda slots: score_batch(slots, directions, plans.trial(few), objective, batch, total=count),
                lambda: score_batch([], directions, plans.clean(few), objective, batch, total=count),
            )

    def _check(
        self,
        run: Callable[[], torch.Tensor],
        directions: Directions,
        plan: Plan,
        score: Callable[[Sequence[weights.Slot]], torch.Tensor],
        plain: Callable[[], torch.Tensor],
    ) -> None:
        """Before the first step: the objective is pure, and the forward perturbs what it should.

        A loss that is not finite proves neither; the check then waits for the next step.
        """
        exact = all(slot.parameter.dtype == torch.float32 for slot in self.slots)
        losses, gap, allowed = run(), math.inf, 0.0
        self.forwards += 1
        for _ in range(2):  # a process's first run may differ from all others: libraries choose their kernels in it
            before, losses = losses, run()
            self.forwards += 1
            if not bool(torch.isfinite(before).all() and torch.isfinite(losses).all()):
                return
            gap = float((before - losses).abs().max())
            allowed = (ROUNDING if exact else ROUNDING_16) * (1 + float(losses.abs().max()))
            if gap <= allowed:
                break
        if gap > allowed:
            raise NotPure(
                f"the objective is not pure: two runs on the same weights and batch differ by {gap:.3g}; "
                "switch dropout off with model.eval(), and draw data and samples outside it"
            )
        if self.self_check:
            self_check(self.slots, directions, plan, score, plain, every=self.self_check == "full")
        self._checked = True

    def _step_of(self, loss: float, differences: torch.Tensor) -> apply.Step:
        """What the next step does."""
        lrs = np.array([group["lr"] for group in self.param_groups], np.float32)
        decays = np.array([1 - group["lr"] * group["weight_decay"] for group in self.param_groups], np.float32)
        multipliers = np.stack([self.multipliers(differences, group).numpy() for group in self.param_groups])
        return apply.Step(self.steps, loss, lrs, None if bool((decays == 1).all()) else decays, multipliers)

    def _skip(self, loss: float) -> None:
        with uninterrupted():
            if self.record is not None:
                self.record(apply.Skip(self.steps, loss))
            self.steps += 1
        self.skipped += 1
        self._skips_in_row += 1
        self.info = Info(loss, math.nan, math.nan, True)
        if self.is_stuck:
            raise NotFinite(
                f"the loss was {loss} for {self._skips_in_row} steps in a row; the weights are those before them: "
                "lower lr or eps, or look at the data"
            )


def _outside() -> int:
    """The stacklevel of a warning that is for who called zerograd."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("zerograd.optim."):
        level, frame = level + 1, frame.f_back
    return level


def require_counts(batch: Any, examples: int | None, micro_batch: int | str | None) -> None:
    for name, count in (("micro_batch", micro_batch), ("examples", examples)):
        if isinstance(count, str) and (name, count) != ("micro_batch", "auto"):
            raise ValueError(f"{name} is {count!r}; it must be a number of at least 1" + ", or 'auto'" * (name == "micro_batch"))
        if isinstance(count, int) and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
        if count is not None and batch is None:
            raise ValueError(f"{name} is {count}, but a closure has no examples; call step(objective, batch)")
