"""The state of the training loop: everything it needs to continue, beside weights, optimiser and journal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zerograd.journal import Record, Restore, Skip, Step
from zerograd.tune.noise_scale import STEPS_BETWEEN_PROBES, NoiseScale
from zerograd.tune.schedule import Limits, evaluations_of
from zerograd.tune.setup import Setup
from zerograd.tune.sinks import Row


@dataclass
class LoopState:
    """The state of the training loop. Notes in the journal store the first part; the journal's records rebuild the
    rest.

    seconds: of training, without evaluations. flat_steps: steps whose branches all had the same score; 0 for a method
    that refuses steps itself. back_offs: how often the learning rate was lowered. best_step: the number of steps before
    the best weights; None if none are saved. lowest: the lowest value of the criterion for the best weights.
    lowest_loss: the lowest dev loss. waited: evaluations since the best one. mean_loss: a running mean over steps. dev:
    the last value on the dev split. evaluations_due: the number of evaluations that were due so far; -1 before the
    first. next_probe: the step of the next probe of the noise scale.

    cpu_seconds: of this process in training. history: the rows of logged steps. pending: the row of the last step,
    until it is logged. stopped: why the run ended before its limits. interrupted: whether Ctrl-C ended it. has_ended:
    whether a resumed run has nothing left to do.
    """

    noise: NoiseScale
    seconds: float = 0.0
    flat_steps: int = 0
    back_offs: int = 0
    best_step: int | None = None
    lowest: float = math.inf
    lowest_loss: float = math.inf
    waited: int = 0
    mean_loss: float = math.nan
    dev: float = math.nan
    evaluations_due: int = -1
    next_probe: int = STEPS_BETWEEN_PROBES

    cpu_seconds: float = 0.0
    history: list[Row] = field(default_factory=list)
    pending: Row | None = None
    stopped: str | None = None
    interrupted: bool = False
    has_ended: bool = False

    @classmethod
    def of(cls, setup: Setup) -> LoopState:
        """The state of a run before its first step."""
        settings = setup.settings
        first: Row | None = {"step": 0, "seconds": 0.0, "evaluations": 0} if settings.evals else None
        return cls(NoiseScale.for_run(settings.batch_size, len(setup.task.train)), pending=first)

    def step_row(self, loss: float, lr: float, setup: Setup) -> Row:
        """The row of the last step."""
        self.mean_loss = loss if math.isnan(self.mean_loss) else 0.9 * self.mean_loss + 0.1 * loss
        steps, evaluations = setup.optimizer.steps, evaluations_of(setup.optimizer)
        return {"step": steps, "seconds": self.seconds, "evaluations": evaluations, "loss": loss, "lr": lr}

    def reschedule(self, done: float, evals: int) -> None:
        """Count the evaluations that are due when a share `done` of the run is done."""
        self.evaluations_due = max(0, int(done * evals + 1e-9))

    def to_note(self, forwards: float) -> dict[str, Any]:
        """The state as a note of the journal. forwards: the optimiser's count of forward passes."""
        loop = {
            "elapsed": round(self.seconds, 3),
            "flat_steps": self.flat_steps,
            "back_offs": self.back_offs,
            "best_step": self.best_step,
            "lowest": self.lowest,
            "lowest_loss": self.lowest_loss,
            "waited": self.waited,
            "loss": self.mean_loss,
            "dev": self.dev,
            "next": self.evaluations_due,
            "probe_due": self.next_probe,
        }
        return {"loop": loop, "forwards": forwards, "signal": [self.noise.squared_means, self.noise.variances]}

    def load_note(self, note: Mapping[str, Any]) -> None:
        """Load the state from a note of `to_note`; None stands for a number that is not finite."""
        loop = note["loop"]
        self.seconds, self.flat_steps, self.back_offs = loop["elapsed"], loop["flat_steps"], loop["back_offs"]
        self.best_step, self.waited = loop["best_step"], loop["waited"]
        self.evaluations_due, self.next_probe = loop["next"], loop["probe_due"]
        self.lowest, self.lowest_loss = (math.inf if loop[name] is None else loop[name] for name in ("lowest", "lowest_loss"))
        self.mean_loss, self.dev = (math.nan if loop[name] is None else loop[name] for name in ("loss", "dev"))
        self.noise.squared_means, self.noise.variances = map(list, note["signal"])


def replay_records(records: Iterable[Record], setup: Setup) -> tuple[LoopState, bool]:
    """Rebuild the loop's state and the optimiser's counts from the records of a journal; weights do not change.

    Returns (state, whether the run had ended and has more to do now, since it was interrupted or has new limits).
    """
    state, optimizer, settings = LoopState.of(setup), setup.optimizer, setup.settings
    limits = Limits.of(settings)
    steps = skipped = in_row = since_note = 0
    ended: Mapping[str, Any] = {}
    for record in records:
        if isinstance(record, (Step, Skip)):
            steps, since_note, ended = steps + 1, since_note + 1, {}
            is_skip = isinstance(record, Skip)
            skipped, in_row = skipped + is_skip, in_row + 1 if is_skip else 0
            optimizer.steps = steps
            optimizer.forwards += optimizer.evaluations
            state.flat_steps += isinstance(record, Step) and not record.coefficients.any() and not setup.refuses_steps
            state.pending = state.step_row(record.loss, float(record.lrs[-1]) if isinstance(record, Step) else math.nan, setup)
            state.history.append(state.pending)
            continue
        note = record.note
        ended = note if "ended" in note else {}
        if "seconds" in note:
            state.seconds, since_note = float(note["seconds"]), 0
        if "loop" in note:
            state.load_note(note)
            optimizer.forwards = note["forwards"]
            state.pending, since_note = None, 0
        if "settings" in note:
            state.reschedule(limits.done(state.seconds, optimizer), settings.evals)
        in_row = 0 if isinstance(record, Restore) else in_row
    if steps and state.pending is not None:
        state.history.pop()  # the loop logs the row, with an evaluation if one is due
    state.seconds += since_note * state.seconds / max(1, steps - since_note)
    optimizer.continue_from(steps, skipped, in_row)
    done = limits.done(state.seconds, optimizer) >= 1
    state.has_ended = bool(ended) and not ended["interrupted"] and (done or ended["stopped"] is not None)
    state.stopped = ended["stopped"] if state.has_ended else None
    return state, bool(ended) and not state.has_ended
