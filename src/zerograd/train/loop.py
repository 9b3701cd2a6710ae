"""The training loop: steps until the limit, looks at the dev split, keeps the best weights, and backs off when a run diverges."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from zerograd.optim.base import NotFinite
from zerograd.text import evaluation, objectives
from zerograd.train import order
from zerograd.train.progress import Progress
from zerograd.train.signal import APART, BATCHES, DIRECTIONS, Signal
from zerograd.train.snapshot import Snapshot

if TYPE_CHECKING:
    from zerograd.train.tune import Tuning

DIVERGED = 1.5
"""A dev loss so many times the lowest, and 0.1 above it, is one that a smaller learning rate would not have come to."""

BACK_OFF = 0.3
"""What the learning rate is multiplied by when a run diverges."""

BACK_OFFS = 3
"""How often, at most."""


class Loop:
    """Trains what a Tuning has set up.

    elapsed: seconds of training, without those of evaluations. history: a row a logged step. flat_steps: those whose branches
    scored the same. stopped: why the run ended before its limit. back_offs: how often the learning rate was lowered.
    """

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.settings = tuning.settings
        self.optimizer = tuning.optimizer
        self.elapsed = 0.0
        self.history: list[dict[str, float]] = []
        self.flat_steps = 0
        self.back_offs = 0
        self.stopped: str | None = None
        batch, rows = self.settings.batch_size, len(tuning.task.train)
        self.signal = Signal(min(batch, rows), min(BATCHES * batch, rows))
        self._best = Snapshot(tuning.folder / ".best", self.optimizer.slots)
        self._best_step = 0
        self._lowest = self._lowest_loss = math.inf
        self._waited = 0
        self._loss = self._dev = math.nan
        self._batches = order.batches(
            [tuning.scorer.length(e) for e in tuning.task.train], self.settings.batch_size, self.settings.seed
        )
        self._next = 0  # evaluations that were due
        self._probe_due = APART

    def run(self) -> float:
        """Train to the end, and leave the model with the weights that the settings want kept. Returns the seconds of training."""
        try:
            if self.settings.evals:
                self._evaluate({"step": 0, "seconds": 0.0})
            while (done := self._done()) < 1:
                try:
                    record = self._step(done)
                except NotFinite as error:
                    if not self._back_off(str(error)):
                        self.stopped = f"ended at step {self.optimizer.steps}: {error}"
                        break
                    continue
                if self._is_due():
                    self._evaluate(record)
                else:
                    self._log(record)
                self._tell()
                if self.settings.patience and self._waited >= self.settings.patience:
                    self.stopped = f"ended at step {self.optimizer.steps}: {self._waited} evaluations were no better than the best"
                    break
        except KeyboardInterrupt:
            of = "the best weights until then" if self._best.path.exists() else "the weights then"
            self.stopped = f"interrupted after step {self.optimizer.steps}; the result is of {of}"
        if self._best.path.exists():
            self._best.restore()
        return self.elapsed

    def close(self) -> None:
        """Forget the kept weights."""
        self._best.remove()

    def _step(self, done: float) -> dict[str, float]:
        start = time.perf_counter()
        rate = BACK_OFF**self.back_offs * schedule(self.settings.schedule, done, self._left())
        for group in self.optimizer.param_groups:
            group["lr"] = self.tuning.lr * rate
        chosen = next(self._batches)
        value = self.tuning.step([self.tuning.task.train[i] for i in chosen])
        self.elapsed += time.perf_counter() - start
        self._loss = value if math.isnan(self._loss) else 0.9 * self._loss + 0.1 * value
        record = {"step": self.optimizer.steps, "seconds": self.elapsed, "loss": value, "lr": group["lr"]}
        if self.optimizer.info is not None:
            record["spread"] = self.optimizer.info.spread
            self.flat_steps += self.optimizer.info.difference == 0 and not self.optimizer.info.spread > 0
        return record

    def _is_due(self) -> bool:
        """Whether an evaluation is, and which is the next then."""
        if not self.settings.evals:
            return False
        due = int(self._done() * self.settings.evals + 1e-9)
        late, self._next = due > self._next, max(due, self._next)
        return late

    def _evaluate(self, record: dict[str, float]) -> None:
        """Add what the dev split says to a record; keep the weights when they are the best, or go back to those."""
        tuning, metric = self.tuning, self.tuning.metric
        said = evaluation.answers(tuning.scorer, tuning.task.dev, tuning.rows)
        record["dev_loss"] = self._dev = said.loss
        if metric is not None and tuning.is_quick:
            record["dev_value"] = self._dev = evaluation.of(metric, tuning.scorer, tuning.task.dev, said)
        if self.optimizer.steps >= self._probe_due and self.settings.objective == objectives.LOSS:
            self._probe(record)
            self._probe_due = self.optimizer.steps + APART
        self._log(record)
        by_loss = self.settings.objective == objectives.LOSS or "dev_value" not in record
        worse = said.loss if by_loss else -self._dev
        if said.loss > DIVERGED * self._lowest_loss + 0.1 and self._back_off(f"the dev loss is {said.loss:.3g}"):
            return
        self._lowest_loss = min(self._lowest_loss, said.loss)
        self._waited += 1
        if worse < self._lowest:
            self._lowest, self._waited, self._best_step = worse, 0, self.optimizer.steps
            self._keep()

    def _probe(self, record: dict[str, float]) -> None:
        tuning = self.tuning
        first = len(self.signal.squares) // DIRECTIONS * self.signal.examples % len(tuning.task.train)
        others = (tuning.task.train[first:] + tuning.task.train)[: self.signal.examples]  # than the last probe's
        chosen = sorted(others, key=tuning.scorer.length)  # in batches like a step's, of similar lengths
        size = self.signal.batch
        batches = [tuning.batch(chosen[first : first + size]) for first in range(0, len(chosen), size)]
        parts = [(batch, len(batch.labels), tuning.micro_batch(batch)) for batch in batches]
        self.signal.probe(self.optimizer, tuning.scorer.losses, parts)
        record["noise_scale"] = self.signal.noise_scale

    def _keep(self) -> None:
        if self.settings.keep == "best":
            try:
                self._best.take()
            except OSError as error:  # training goes on: what it has learnt is worth more
                self.tuning.say(f"the best weights cannot be kept ({error}); the run ends with the last ones")
                self._best.remove()

    def _back_off(self, why: str) -> bool:
        """Go back to the best weights with a lower learning rate. Returns whether that could be done."""
        if self.back_offs == BACK_OFFS or not self._best.path.exists():
            return False
        self._best.restore()
        self.back_offs += 1
        back = f"back to the weights of step {self._best_step} with the learning rate times {BACK_OFF}"
        self.tuning.say(f"step {self.optimizer.steps}: {why}; {back}")
        return True

    def _log(self, record: dict[str, float]) -> None:
        self.history.append(record)
        for tracker in self.tuning.trackers:
            tracker.log(int(record["step"]), {name: value for name, value in record.items() if name != "step"})

    def _tell(self) -> None:
        done, steps = self._done(), self.optimizer.steps
        pace = self.elapsed / steps
        left = max(0.0, self.elapsed / done - self.elapsed) if done > 0 else math.nan
        speed = min(self.settings.batch_size, len(self.tuning.task.train)) / pace
        metric = self.tuning.metric
        name = "dev " + (metric.name if metric and self.tuning.is_quick else "loss")
        self.tuning.listen(Progress("training", min(done, 1.0), steps, self._loss, self._dev, name, speed, pace, left))

    def _done(self) -> float:
        """The share of the run that is done: the larger of its share of minutes and of steps."""
        shares = [0.0]
        if self.settings.minutes:
            shares.append(self.elapsed / (60 * self.settings.minutes))
        if self.settings.steps:
            shares.append(self.optimizer.steps / self.settings.steps)
        return max(shares)

    def _left(self) -> float:
        """The share of the run that is left, to the bit as transformers' schedules have it when steps are the limit."""
        shares = [1.0]
        if self.settings.minutes:
            shares.append(max(0.0, 1 - self.elapsed / (60 * self.settings.minutes)))
        if self.settings.steps:
            shares.append((self.settings.steps - self.optimizer.steps) / self.settings.steps)
        return min(shares)


def schedule(name: str, done: float, left: float) -> float:
    """What the learning rate is multiplied by when a share `done` of the run is done and a share `left` is not."""
    if name == "linear":
        return left
    return 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1.0


def found(loop: Loop) -> dict[str, Any]:
    """What a result says of the loop."""
    finite = loop.signal.noise_scale if math.isfinite(loop.signal.noise_scale) else None
    ends = [end if math.isfinite(end) else None for end in loop.signal.interval]
    return {
        "steps": loop.optimizer.steps,
        "skipped_steps": loop.optimizer.skipped,
        "forwards": loop.optimizer.forwards,
        "flat_steps": loop.flat_steps,
        "back_offs": loop.back_offs,
        "noise_scale": finite,
        "noise_scale_range": ends if finite else None,
        "signal_to_noise": loop.signal.to_noise if finite else None,
        "stopped": loop.stopped,
    }
