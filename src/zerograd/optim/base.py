"""What every method shares: torch's optimiser protocol around one chain.

    directions -> plan -> perturbed forward -> scores -> coefficients -> update

A method says which plan it wants, which family its directions have, and how scores become multipliers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zerograd import apply, estimate
from zerograd.perturb import batch as batches
from zerograd.perturb import plan as plans
from zerograd.perturb.check import self_check
from zerograd.perturb.directions import Directions, Family
from zerograd.perturb.plan import Plan
from zerograd.perturb.score import Closure, Objective, score_batch, score_closure
from zerograd.spaces import weights

SKIPS_BEFORE_ERROR = 10


class NotFinite(RuntimeError):
    """The loss has been NaN or infinite for too many steps in a row."""


class NotPure(ValueError):
    """The objective gives different losses for the same weights and batch."""


@dataclass(frozen=True)
class Info:
    """What a step did, for logs: nothing here is needed to go on.

    loss: mean loss of the evaluated branches. difference: mean of the two-sided differences. spread: their standard
    deviation over directions, NaN for one. skipped: the loss was not finite and nothing was updated. forwards: evaluations
    of the batch in this step.
    """

    loss: float
    difference: float
    spread: float
    skipped: bool
    forwards: int


class ZerothOrder(torch.optim.Optimizer):
    """Base of the methods; see `MeZO` and `PerExample` for what a user holds.

    Subclasses set `family` and `per_example` and implement `multipliers`.
    """

    family: Family
    per_example: bool

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        *,
        lr: float,
        eps: float,
        weight_decay: float,
        relative: bool,
        storage: str | None,
        seed: int,
        self_check: bool | str,
    ) -> None:
        _positive("eps", eps)
        _not_negative("lr", lr)
        _not_negative("weight_decay", weight_decay)
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed {seed} is outside 0 .. 2**64 - 1; choose a smaller one")
        groups = _groups(params)
        self.slots = weights.collect([pair for group in groups for pair in group.pop("named")], storage)
        weights.set_scale(self.slots, relative)
        by_id = {id(slot.parameter): slot for slot in self.slots}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) in by_id]
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)
        self._group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        self.seed = seed
        self.steps = 0
        self.skipped = 0
        self.forwards = 0
        self.info: Info | None = None
        self._skips_in_row = 0
        self.self_check = self_check
        self._pure = False

    def plan(self, examples: int) -> Plan:
        """Which direction each expanded example sees."""
        return plans.example_pairs(examples) if self.per_example else plans.shared_pair(examples)

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """What each direction is multiplied by in a group's update. differences: float32, one a direction."""
        raise NotImplementedError

    def step(self, closure: Any, batch: Any = None, *, examples: int | None = None) -> Any:  # type: ignore[override]
        """One step.

        step(closure): torch's protocol; the closure takes nothing, is pure, and returns a scalar loss.
        step(objective, batch): objective(batch) returns one loss an example, shape (examples,), or (sums, weights) of
        that shape whose quotient of totals is the loss. The branches ride the batch.
        examples: how many the batch has, when a tensor of fewer rows than examples is in it.
        Returns the mean loss of the two branches, a float.
        Raises NotPure, NotFinite, or UnresolvedOperation; weights are then as they were.
        """
        directions = Directions(self.family, self.seed, self.steps)
        for slot in self.slots:
            slot.eps = self._group_of[id(slot.parameter)]["eps"]
        scores = self._closure_scores(closure, directions) if batch is None else None
        if scores is None:
            scores = self._batch_scores(closure, batch, directions, examples or batches.examples(batch))
        plus, minus = scores
        loss = float((plus.mean() + minus.mean()) / 2)
        differences = estimate.central(plus, minus)
        if not math.isfinite(loss) or not bool(torch.isfinite(differences).all()):
            self._skip(loss)
            return loss
        self._skips_in_row = 0
        updates = {id(group): self.multipliers(differences, group).tolist() for group in self.param_groups}
        ids = range(len(differences))
        with apply.uninterrupted():
            for slot in self.slots:
                group = self._group_of[id(slot.parameter)]
                decay = 1 - group["lr"] * group["weight_decay"]
                apply.update(slot, directions, ids, updates[id(group)], decay)
            self.steps += 1
        spread = float(differences.std()) if len(differences) > 1 else math.nan
        self.info = Info(loss, float(differences.mean()), spread, False, 2)
        return loss

    def evaluate(self, objective: Objective, batch: Any, *, examples: int | None = None) -> torch.Tensor:
        """The unperturbed losses of a batch, through the same forward that steps use."""
        count = examples or batches.examples(batch)
        return score_batch(self.slots, Directions(self.family, self.seed, self.steps), plans.clean(count), objective, batch)

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict, and what makes the next step the same: seed, step, scales and remainders."""
        saved = super().state_dict()
        saved["zerograd"] = {
            "seed": self.seed,
            "steps": self.steps,
            "skipped": self.skipped,
            "forwards": self.forwards,
            "slots": weights.state(self.slots),
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises KeyError when a tensor is missing."""
        ours = state_dict["zerograd"]
        weights.load_state(self.slots, ours["slots"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zerograd"})
        self._group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        self.seed, self.steps = ours["seed"], ours["steps"]
        self.skipped, self.forwards = ours["skipped"], ours["forwards"]

    def _closure_scores(self, closure: Closure, directions: Directions) -> tuple[torch.Tensor, torch.Tensor]:
        if self.per_example:
            raise ValueError("per-example directions need step(objective, batch): a closure's scalar hides the examples")

        def plain() -> torch.Tensor:
            return score_closure([], directions, 0, closure)

        if not self._pure:
            self._require_pure(lambda: score_closure(self.slots, directions, 0, closure))
            self._check(directions, plans.branch(0, 1), lambda slots: score_closure(slots, directions, 1, closure), plain)
        self.forwards += 2
        return score_closure(self.slots, directions, 1, closure), score_closure(self.slots, directions, -1, closure)

    def _batch_scores(
        self, objective: Objective, batch: Any, directions: Directions, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._pure:
            self._require_pure(lambda: score_batch(self.slots, directions, plans.clean(count), objective, batch))
            few = min(2, count)
            little, plan = batches.take(batch, count, few), self.plan(few)
            self._check(
                directions,
                plan,
                lambda slots: score_batch(slots, directions, plan, objective, little),
                lambda: score_batch([], directions, plans.clean(few), objective, little),
            )
        scores = score_batch(self.slots, directions, self.plan(count), objective, batch)
        self.forwards += 2
        plus, minus = estimate.halves(scores)
        return (plus, minus) if self.per_example else (plus.mean().view(1), minus.mean().view(1))

    def _check(
        self,
        directions: Directions,
        plan: Plan,
        score: Callable[[Sequence[weights.Slot]], torch.Tensor],
        plain: Callable[[], torch.Tensor],
    ) -> None:
        if self.self_check:
            self_check(self.slots, directions, plan, score, plain, every=self.self_check == "full")
        self._pure = True

    def _require_pure(self, run: Callable[[], torch.Tensor]) -> None:
        first, second = run(), run()
        self.forwards += 2
        if not torch.equal(first, second) and bool(torch.isfinite(first).all()):
            gap = float((first - second).abs().max())
            raise NotPure(
                f"the objective is not pure: two runs on the same weights and batch differ by {gap:.3g}; "
                "switch dropout off with model.eval(), and draw data and samples outside it"
            )

    def _skip(self, loss: float) -> None:
        self.steps += 1
        self.skipped += 1
        self._skips_in_row += 1
        self.info = Info(loss, math.nan, math.nan, True, 2)
        if self._skips_in_row >= SKIPS_BEFORE_ERROR:
            raise NotFinite(
                f"the loss was {loss} for {self._skips_in_row} steps in a row; the weights are those before them: "
                "lower lr or eps, or look at the data"
            )


def _groups(params: nn.Module | Iterable[Any]) -> list[dict[str, Any]]:
    """torch's parameter groups; each also carries its (name, parameter, owner) triples under "named"."""
    items: list[Any] = [params] if isinstance(params, nn.Module) else list(params)
    if not items:
        raise ValueError("no parameters were given; pass a module, or its named_parameters()")
    if not isinstance(items[0], dict):
        items = [{"params": params if isinstance(params, nn.Module) else items}]
    groups = []
    for item in items:
        named = list(weights.named_parameters(item["params"]))
        unique = {id(p): p for _, p, _ in named}
        groups.append({**item, "params": list(unique.values()), "named": named})
    return groups


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be above 0")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; it must be at least 0")
