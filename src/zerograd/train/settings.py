"""The settings of a fine-tuning run: one dataclass for the Python API, the command line and the record of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from zerograd.optim import METHODS
from zerograd.perturb.directions import DISTRIBUTIONS
from zerograd.spaces.weights import STORAGES
from zerograd.text.schemes import SCHEMES
from zerograd.text.tasks import TASKS

SCHEDULES = ("constant", "linear", "cosine")

RATES = {"mezo": 0.005, "per-example": 0.04}
"""The learning rates that suit each method, in its own units."""


def _setting(default: Any, help: str, choices: tuple[str, ...] = (), kind: type | None = None) -> Any:
    """A field. kind: of its values, where None stands for a default that depends on others."""
    return field(default=default, metadata={"help": help, "choices": choices, "kind": kind or type(default)})


@dataclass(frozen=True)
class TuneSettings:
    """What `zerograd tune` takes; every field is a flag of the same name. Raises ValueError naming a field that is wrong."""

    model: str = _setting("demo", "'demo' (SmolLM2-135M-Instruct), a folder that transformers loads, or a .gguf file")
    task: str = _setting("sentiment-movies", "what to learn", TASKS)
    method: str = _setting("per-example", "how directions are drawn and scores are used", tuple(METHODS))
    scheme: str = _setting("upper", "what is trained: " + "; ".join(f"{k}: {v}" for k, v in SCHEMES.items()), tuple(SCHEMES))
    layers: int = _setting(0, "how many layers the scheme upper trains; 0 for half of them")
    minutes: float = _setting(5.0, "stop after this much training time; 0 for no limit")
    steps: int = _setting(0, "stop after this many steps; 0 for no limit")
    batch_size: int = _setting(32, "examples a step")
    lr: float = _setting(None, "learning rate; by default " + ", ".join(f"{v} for {k}" for k, v in RATES.items()), kind=float)
    eps: float = _setting(2e-2, "smoothing radius, relative to each tensor's rms")
    schedule: str = _setting("linear", "how the learning rate falls over the run", SCHEDULES)
    weight_decay: float = _setting(0.0, "decoupled weight decay")
    directions: int = _setting(1, "directions an example sees in a step (per-example)")
    sides: int = _setting(2, "2: central differences; 1: leave-one-out among an example's directions (per-example)")
    rank: int = _setting(1, "rank of a matrix's direction (per-example)")
    distribution: str = _setting("rademacher", "of the entries of a direction", DISTRIBUTIONS)
    storage: str = _setting("split", "how trained weights are stored", STORAGES)
    seed: int = _setting(0, "names the directions and the order of the data")
    evals: int = _setting(10, "evaluations on the dev split during training; they do not count as training time")
    out: str = _setting("", "the run's folder; runs/TASK-METHOD-SEED when empty")
    threads: int = _setting(0, "CPU threads; 0 for all cores")

    def __post_init__(self) -> None:
        for name in ("task", "method", "scheme", "schedule", "distribution", "storage"):
            choices, value = self.__dataclass_fields__[name].metadata["choices"], getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        if self.lr is None:
            object.__setattr__(self, "lr", RATES[self.method])
        for name in ("batch_size", "directions", "sides", "rank"):
            _at_least(name, getattr(self, name), 1)
        for name in ("layers", "minutes", "steps", "lr", "weight_decay", "seed", "evals", "threads"):
            _at_least(name, getattr(self, name), 0)
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps is {self.eps}; it must be above 0")
        if not self.minutes and not self.steps:
            raise ValueError("minutes and steps are both 0: the run would have no end; give one of them")
        for name in ("directions", "sides", "rank"):
            if self.method != "per-example" and getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ValueError(f"{name} is {getattr(self, name)}, which only method per-example uses; this is {self.method}")
        if self.layers and self.scheme != "upper":
            raise ValueError(f"layers is {self.layers}, which only scheme upper uses; this is scheme {self.scheme}")
        if self.method == "per-example" and self.batch_size < 2:
            raise ValueError("batch_size is 1; per-example directions are scaled by their spread, which needs at least 2")


def _at_least(name: str, value: float, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} is {value}; it must be a number of at least {least}")
