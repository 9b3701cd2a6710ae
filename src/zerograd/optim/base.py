"""torch's optimiser protocol around one chain, the same for every method:

directions -> plan -> perturbed forward -> scores -> coefficients -> update
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from zerograd.directions import Directions, Draws
from zerograd.errors import NotFinite
from zerograd.evaluate.derivative import Duals, backward
from zerograd.evaluate.evaluator import Closure, Evaluator, LocalBatch, Objective, Radii, begun, require_counts
from zerograd.evaluate.micro_batch import MicroBatch
from zerograd.evaluate.self_check import is_pure, self_check
from zerograd.machine.interrupts import uninterrupted
from zerograd.optim.checkpointing import Checkpointing
from zerograd.optim.groups import grouped, require_in_range
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries import NoQuery, Scores
from zerograd.queries.plan import along
from zerograd.spaces import Space, collect
from zerograd.spaces.collect import load_state, require_loadable, state
from zerograd.spaces.floats import Rounded
from zerograd.update import Memory, Skip, Step

SKIPS_BEFORE_ERROR = 10

ROUNDING_WALK = 0.0024
"""The rms change of a weight by one stochastic rounding to bfloat16, relative to the weight: sqrt(1/6) of the mean
spacing.
"""


@dataclass(frozen=True)
class Info:
    """A step in numbers, for logs.

    loss: mean loss of the evaluated branches. difference: mean over directions of the radius times the derivative.
    spread: its standard deviation, NaN for one direction. skipped: the loss was not finite and nothing was updated.
    flat: all branches scored the same.
    """

    loss: float
    difference: float
    spread: float
    skipped: bool
    flat: bool = False


@dataclass(frozen=True)
class Asked:
    """A step that was asked: its number, what evaluates, what has no gradient of it, its directions, the first group's radius, and
    how to get its scores.
    """

    number: int
    evaluator: Evaluator
    evaluated: Evaluator
    directions: Directions
    radius: float
    scores: Callable[[], Scores]


class ZerothOrder(torch.optim.Optimizer):
    """Base of the optimisers: a method's settings, and torch's face.

    Args:
        params: a module, (name, parameter) pairs, parameters, or torch's groups of these.
        lr: learning rate, at least 0; None for the method's `default_lr`.
        eps: smoothing radius, above 0; None for 0.01.
        weight_decay: decoupled, at least 0.
        relative: a unit of direction is each tensor's rms, so that eps and lr are relative changes; False is the papers'
            convention. None for True, and for False in methods that follow the gradient alone.
        precision: "float32", "split", "bfloat16", a Space class, or None to choose by the parameters' dtype; see `spaces`.
        seed: 0 <= seed < 2**64; with the step number it names every direction.
        self_check: compare the perturbed forward with really perturbed weights at the first step(objective, batch);
            "full" checks every tensor, True each kind of tensor.
        settings: of the method, the fields of its `Settings`.

    steps: taken so far, skipped ones too. forwards: how often the model was evaluated on the batch, once a branch. fit:
    the memory that a pass may take, `fit.memory` in bytes. record: is told each step before it is done; an error that it
    raises ends the step with the weights as they were.
    Raises ValueError for a setting out of range or tensors that cannot be trained, TypeError for a setting that the
    method lacks.
    """

    Settings: ClassVar[type[MethodSettings]]

    default_lr: ClassVar[float]
    """The learning rate to begin with when directions are relative."""

    adapter_lr: ClassVar[float | None] = None
    """The learning rate to begin with for adapters, where it is another."""

    step_was_skipped: ClassVar[bool] = False
    _is_accelerate_prepared: ClassVar[bool] = True
    """accelerate's `prepare` then returns the optimiser itself: its wrapper would pass no batch on to `step`."""

    settings: MethodSettings
    method: Method
    spaces: list[Space]
    draws: Draws
    memory: Memory
    steps: int
    skipped: int
    forwards: float
    info: Info | None
    record: Callable[[Step | Skip], None] | None
    self_check: bool | str
    fit: MicroBatch
    _skips_in_row: int
    _asked: int
    _checked: bool
    _checkpointing: Checkpointing
    _module: nn.Module | None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "Settings" in vars(cls):
            common = [p for p in inspect.signature(ZerothOrder.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD]
            own = [
                inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
                for f in dataclasses.fields(cls.Settings)
            ]
            cls.__signature__ = inspect.Signature([*common[1:], *own])  # type: ignore[attr-defined]

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | None = None,
        eps: float | None = None,
        *,
        weight_decay: float = 0.0,
        relative: bool | None = None,
        precision: str | type[Space] | None = None,
        seed: int = 0,
        self_check: bool | str = True,
        **settings: Any,
    ) -> None:
        self.settings = self._settings(settings)
        self.method = self.settings.build()
        perturbs = self.method.perturbs
        if not perturbs and eps is not None:
            raise ValueError(f"eps is {eps}, and {type(self).__name__} perturbs nothing; leave it out")
        if not isinstance(seed, Integral) or not 0 <= seed < 1 << 64:
            raise ValueError(f"seed {seed} is not an integer in 0 .. 2**64 - 1; choose one")
        if self_check not in (True, False, "full"):
            raise ValueError(f"self_check is {self_check!r}; it must be True, False or 'full'")
        radius = (0.01 if eps is None else eps) if perturbs else 1.0
        defaults = {"lr": self.default_lr if lr is None else lr, "eps": radius, "weight_decay": weight_decay}
        groups = grouped(params)
        for group in groups:
            require_in_range(defaults | group)
        self.spaces = collect([pair for group in groups for pair in group.pop("named")], precision)
        relative = not isinstance(self.method.query, NoQuery) if relative is None else relative
        for space in self.spaces:
            space.set_scale(relative)
        trained = {id(space.parameter) for space in self.spaces}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) in trained]
        super().__init__([group for group in groups if group["params"]], defaults)
        self.draws = Draws(self.method.draw, int(seed))
        self.method.draw.init(self.spaces)
        parts = self.method.rule, self.method.query, self.draws
        self.memory = Memory(*parts, self.spaces, self.group_of, len(self.param_groups))
        self.steps = 0
        self.skipped = 0
        self.forwards = 0
        self.info = None
        self.record = None
        self.self_check = self_check
        self.fit = MicroBatch()
        self._skips_in_row = 0
        self._asked = 0
        self._checked = False
        gradient = self.method.gradient
        self._module = params if isinstance(params, nn.Module) else None
        self._checkpointing = Checkpointing(params if gradient is not None and gradient.checkpointing else None)
        if any(isinstance(space, Rounded) for space in self.spaces):
            warnings.warn(
                f"bfloat16 precision rounds at random: unbiased, but a walk of up to {100 * ROUNDING_WALK:.2f} % of a weight a "
                f"step, {100 * ROUNDING_WALK * 1000**0.5:.0f} % after 1,000 steps; precision 'split' has none",
                stacklevel=_outside(),
            )

    @property
    def optimizer(self) -> ZerothOrder:
        """Itself: accelerate looks for the optimiser within a prepared one."""
        return self

    @property
    def branches(self) -> int:
        """How often a pass repeats the batch, at most: at least once."""
        return max(1, self.method.query.branches)

    @property
    def evaluations(self) -> float:
        """How often a step evaluates the batch, each branch counted; a backward pass with its forward counts as three."""
        return self.method.evaluations

    @property
    def state_bytes(self) -> int:
        """Bytes kept from step to step, beside the weights and their remainders."""
        return self.memory.nbytes + self.method.draw.nbytes

    @property
    def radii(self) -> Radii:
        """The smoothing radius of each space."""
        return {s.id: self.param_groups[g]["eps"] for s, g in zip(self.spaces, self.group_of, strict=True)}

    @property
    def group_of(self) -> list[int]:
        """The parameter group of each space."""
        found = {id(p): i for i, group in enumerate(self.param_groups) for p in group["params"]}
        return [found[id(space.parameter)] for space in self.spaces]

    def step(  # type: ignore[override]
        self, objective: Any = None, batch: Any = None, *, examples: int | None = None, micro_batch: int | str | None = None
    ) -> float:
        """One step.

        step(closure): torch's protocol; the closure takes nothing, computes the loss and returns it as one number, without
        backward, and may be called many times. Buffers, such as the running statistics of norms, are then as they were.
        step(objective, batch): objective(batch) returns one loss an example, shape (examples,), or (sums, weights) of
        that shape whose quotient of totals is the loss. The branches ride the batch.

        examples: how many the batch has, when a tensor that does not hold examples is in it.
        micro_batch: how many examples are evaluated at a time, at least 1; None for all; "auto" for as many as fit in
        `fit.memory`, by measurement. Whenever memory runs out, half as many are tried.

        Returns the mean loss of the branches.
        Raises NotPure, NotFinite, SelfCheckFailed or UnresolvedOperation; TypeError for a closure or an objective that is none or
        does not return losses. Weights are then as they were.
        """
        self._asked = 0  # of a step that was interrupted
        return self.tell(self.ask(objective, batch, examples=examples, micro_batch=micro_batch))

    def ask(
        self, objective: Any = None, batch: Any = None, *, examples: int | None = None, micro_batch: int | str | None = None
    ) -> Asked:
        """The first half of a step: evaluate its plan on the weights as they are now. Arguments and errors are those of `step`.

        An evaluator that scores answers elsewhere goes on with it meanwhile; `tell` waits. Steps are told in the order in which
        they are asked, and one may be asked before the one before it is told: it then sees the weights before that one's update.
        """
        evaluator = self._evaluator(objective, batch, examples, micro_batch)
        number = self.steps + self._asked
        directions, query = self.draws.at(number), self.method.query
        self._verify_once(evaluator, directions)
        evaluated = self._evaluated(evaluator)
        plan = query.plan(evaluated.examples, directions)
        scores = begun(evaluated, plan, directions, self.radii)
        self._asked += 1
        return Asked(number, evaluator, evaluated, directions, self.param_groups[0]["eps"], scores)

    def tell(self, asked: Asked) -> float:
        """The second half: from scores to the update. Returns the mean loss of the branches.

        Raises ValueError for a step that is not the next one, and the errors of `step`.
        """
        if asked.number != self.steps:
            raise ValueError(f"step {asked.number} was told, and step {self.steps} is next; tell steps in the order of asking")
        self._asked -= 1
        evaluator, evaluated, directions, query = asked.evaluator, asked.evaluated, asked.directions, self.method.query
        scores = asked.scores()
        differences = query.finite_differences(scores)
        coefficients = query.coefficients(differences, asked.radius)  # a schedule may have moved on since
        coefficients = query.refine(coefficients, functools.partial(self._score_along, evaluated, directions, coefficients))
        differentiated = self._gradients(evaluator)
        loss, gradients = differentiated or (query.loss(scores), None)
        finite = [differences, coefficients, *(g for g in gradients or [] if g is not None)]
        if not math.isfinite(loss) or not all(bool(torch.isfinite(some).all()) for some in finite):
            return self._skip(loss)
        self._commit(self._step_of(loss, coefficients), gradients)
        slopes = query.first_order_differences(differences)
        slope, spread = float(slopes.mean()), float(slopes.std()) if len(slopes) > 1 else math.nan
        self.info = Info(loss, slope, spread, False, bool(len(coefficients)) and not coefficients.any())
        return loss

    def attach(self, objective: Any, batch: Any, *, examples: int | None = None, micro_batch: int | str | None = None) -> None:
        """Do now what steps should not pay for: the checks of the first one, and a rehearsal that loads every kernel.

        The rehearsal evaluates the first step's plan and adds none of its directions.
        Raises NotPure, SelfCheckFailed or UnresolvedOperation. Weights stay as they are.
        """
        evaluator = self._evaluator(objective, batch, examples, micro_batch).checked()
        directions = self.draws.at(self.steps)
        self._verify_once(evaluator, directions)
        if self.method.takes_backward:
            evaluator = evaluator.on(self.spaces)  # a rehearsal is no step: its work is not counted
        evaluated = self._evaluated(evaluator)
        scores = evaluated.scores(self.method.query.plan(evaluated.examples, directions), directions, self.radii)
        self._gradients(evaluator)
        with uninterrupted():
            self.memory.rehearse(self._step_of(0.0, torch.zeros_like(self.method.query.finite_differences(scores))))

    def evaluate(self, objective: Objective, batch: Any, *, examples: int | None = None) -> torch.Tensor:
        """The unperturbed losses of a batch, through the same forward that steps use: float32 (examples,)."""
        evaluator = LocalBatch.of(self.spaces, objective, batch, examples=examples)
        return evaluator.clean(self.draws.at(self.steps))

    def continue_from(self, steps: int, skipped: int, skips_in_row: int) -> None:
        """Count as if `steps` steps had been taken, `skipped` of them skipped, and `skips_in_row` of those at the end; steps that
        were asked and not told are forgotten.
        """
        self._asked = 0
        self.steps, self.skipped, self._skips_in_row = steps, skipped, skips_in_row

    @property
    def is_stuck(self) -> bool:
        """Whether so many steps in a row were skipped that `step` raises NotFinite when the next one is too."""
        return self._skips_in_row >= SKIPS_BEFORE_ERROR

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict, and what makes the next step the same: seed, step, scales, stored tensors and memory."""
        saved = super().state_dict()
        saved["zerograd"] = {
            "seed": self.draws.seed,
            "steps": self.steps,
            "skipped": self.skipped,
            "skips_in_row": self._skips_in_row,
            "forwards": self.forwards,
            "settings": self.settings.saved(),
            "spaces": state(self.spaces),
            "memory": {name: tensor.clone() for name, tensor in self.memory.tensors.items()},
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, or nothing of it.

        Raises KeyError when a tensor is missing, ValueError when one was stored otherwise, or groups, memory or
        settings are others.
        """
        if "zerograd" not in state_dict:
            raise KeyError("the saved state is not of a zerograd optimiser: it has no entry 'zerograd'")
        ours = state_dict["zerograd"]
        if ours["settings"] != self.settings.saved():
            theirs, own = ours["settings"], self.settings.saved()
            raise ValueError(f"the saved run has settings {theirs}, and this one {own}; build the optimiser as it was")
        require_loadable(self.spaces, ours["spaces"])
        self.memory.require_loadable(ours["memory"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zerograd"})
        load_state(self.spaces, ours["spaces"])
        self.memory.load(ours["memory"])
        self.draws = Draws(self.method.draw, ours["seed"])
        self.memory.use(self.draws)
        self.continue_from(ours["steps"], ours["skipped"], ours["skips_in_row"])
        self.forwards = ours["forwards"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimiser is built: tensor ids belong to the run. Raises ValueError."""
        if hasattr(self, "steps"):
            raise ValueError("a group cannot be added to a run that has begun; build a new optimiser with all groups")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @classmethod
    def _settings(cls, given: dict[str, Any]) -> MethodSettings:
        known = [f.name for f in dataclasses.fields(cls.Settings)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise TypeError(f"{cls.__name__} has no setting {unknown[0]!r}; its settings are {', '.join(known) or 'none'}")
        return cls.Settings(**given)

    def _evaluator(self, objective: Any, batch: Any, examples: int | None, micro_batch: int | str | None) -> Evaluator:
        own = getattr(objective, "evaluator", None)
        if own is not None or callable(objective):
            require_counts(batch, examples, micro_batch)
        if own is not None and batch is not None:
            made: Evaluator = own(self.spaces, batch, examples=examples, micro_batch=micro_batch, fit=self.fit, count=self._count)
            return made
        if not callable(objective):
            given = "nothing" if objective is None else f"a {type(objective).__name__}"
            raise TypeError(
                f"step() was given {given} to evaluate; call step(closure) or step(objective, batch); "
                "with transformers' Trainer, put ZerothOrderMixin before it"
            )
        if batch is None:
            if self.method.per_example:
                raise ValueError(f"{type(self).__name__} needs step(objective, batch): a closure's scalar hides the examples")
            return Closure(self.spaces, objective, self._count, self._module)
        kind = Duals if self.method.query.derivative else LocalBatch
        return kind.of(self.spaces, objective, batch, examples=examples, count=self._count, micro_batch=micro_batch, fit=self.fit)

    def _count(self, evaluations: float) -> None:
        self.forwards += evaluations

    def _verify_once(self, evaluator: Evaluator, directions: Directions) -> None:
        """Before the first step: the objective is pure, and the forward perturbs what it should.

        A loss that is not finite proves neither; the check then waits for the next step.
        """
        if self._checked or isinstance(self.method.query, NoQuery):
            return
        evaluator = evaluator.checked()
        if is_pure(evaluator, directions, self.spaces):
            if self.self_check and self.method.perturbs:
                self_check(evaluator, directions, self.spaces, every=self.self_check == "full")
            self._checked = True

    def _evaluated(self, evaluator: Evaluator) -> Evaluator:
        """The evaluator of the examples that are not differentiated."""
        gradient = self.method.gradient
        if gradient is None or gradient.share == 1:
            return evaluator
        assert isinstance(evaluator, LocalBatch)
        return evaluator.part(gradient.first(evaluator.examples), evaluator.examples)

    def _gradients(self, evaluator: Evaluator) -> tuple[float, list[torch.Tensor | None]] | None:
        """(the loss, the gradient in each space or None) of the examples that are differentiated; None without a
        backward pass.
        """
        gradient = self.method.gradient
        if gradient is None:
            return None
        assert isinstance(evaluator, LocalBatch)
        if self.record is not None:
            raise ValueError("no journal can hold a gradient; set record to None")
        directions = self.draws.at(self.steps)
        wanted = [s for s in self.spaces if not gradient.inactive_only or not directions.is_active(s)]
        with self._checkpointing:
            loss, found = backward(evaluator.part(0, gradient.first(evaluator.examples)), wanted)
        if gradient.weight != 1:
            found = [None if one is None else one * gradient.weight for one in found]
        return loss, found

    def _score_along(self, evaluator: Evaluator, directions: Directions, coefficients: torch.Tensor, points: Any) -> Any:
        """The scores of points along direction 0, in units of the step that its coefficient would take in each group."""
        steps = self.memory.steps_along(self._step_of(0.0, coefficients))
        radii = {space.id: steps[group] for space, group in zip(self.spaces, self.group_of, strict=True)}
        return evaluator.scores(along(evaluator.examples, points), directions, radii)

    def _step_of(self, loss: float, coefficients: torch.Tensor) -> Step:
        """The record of the next step."""
        groups = self.param_groups
        lrs, radii = (np.array([group[name] for group in groups], np.float32) for name in ("lr", "eps"))
        decays = np.array([1 - group["lr"] * group["weight_decay"] for group in groups], np.float32)
        return Step(self.steps, loss, coefficients.numpy(), lrs, radii, None if bool((decays == 1).all()) else decays)

    def _commit(self, step: Step, gradients: list[torch.Tensor | None] | None) -> None:
        """Record a step, then do it. Once begun it is completed: an interrupt waits for its end."""
        with uninterrupted():
            if self.record is not None:
                self.record(step)
            if gradients is None:
                self.memory.follow([step])
            else:
                self.memory.follow_gradients(step, gradients)
            self.steps += 1
        self._skips_in_row = 0

    def _skip(self, loss: float) -> float:
        """Record a step that changes nothing. Raises NotFinite when there were too many in a row."""
        with uninterrupted():
            if self.record is not None:
                self.record(Skip(self.steps, loss))
            self.steps += 1
        self.skipped += 1
        self._skips_in_row += 1
        self.info = Info(loss, math.nan, math.nan, True)
        if self.is_stuck:
            raise NotFinite(
                f"the loss was {loss} for {self._skips_in_row} steps in a row; the weights are those before them: "
                "lower lr or eps, or look at the data"
            )
        return loss


def _outside() -> int:
    """The stacklevel of a warning that is for the code that called zerograd."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("zerograd.optim."):
        level, frame = level + 1, frame.f_back
    return level
