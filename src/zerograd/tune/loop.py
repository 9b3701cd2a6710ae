"""The training loop: steps until the limit, looks at the dev split, keeps the best weights, and backs off when a run diverges."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zerograd.journal import Record, Restore, Skip, Step
from zerograd.journal.snapshot import Snapshot
from zerograd.optim.base import NotFinite, ZerothOrder
from zerograd.text import evaluation, objectives
from zerograd.text.data import order
from zerograd.tune.noise_scale import APART, BATCHES, DIRECTIONS, Signal
from zerograd.tune.progress import Progress

if TYPE_CHECKING:
    from zerograd.tune.run import Tuning

DIVERGED = 1.5
"""A dev loss so many times the lowest, and 0.1 above it, is one that a smaller learning rate would not have come to."""

BACK_OFF = 0.3
"""What the learning rate is multiplied by when a run diverges."""

BACK_OFFS = 3
"""How often, at most."""

NOTED = 10.0
"""Seconds of training between notes of how many there were."""

TAKEN = 600.0
"""Seconds of training between snapshots, which shorten the way back to where a run was cut off."""

NO_NUMBER = {"lowest": math.inf, "lowest_loss": math.inf, "loss": math.nan, "dev": math.nan, "best_step": None}
"""What stands for a state that a note has no number for."""

Row = dict[str, float]


class Loop:
    """Trains what a Tuning has set up.

    elapsed: seconds of training, without those of evaluations; cpu_seconds: those of this process's processors. history: a row a
    logged step. flat_steps: those whose branches scored the same; none of a method that refuses steps by itself. stopped: why the
    run ended before its limit. back_offs: how often the learning rate was lowered. best_step: steps before the weights that were
    best on the dev split; None where none are kept. pending: the last step's row, until it is logged. probing: whether signal and
    noise are measured now and then. interrupted: whether that ended the run, which may then go on. has_ended: before it was taken
    up again, with nothing more to do.
    """

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.settings = tuning.settings
        self.optimizer = tuning.optimizer
        self.elapsed = self.cpu_seconds = 0.0
        self.history: list[Row] = []
        self.flat_steps = 0
        self._refuses = type(self.optimizer).reconsidered is not ZerothOrder.reconsidered
        self.back_offs = 0
        self.stopped: str | None = None
        self.best_step: int | None = None
        batch, rows = self.settings.batch_size, len(tuning.task.train)
        self.signal = Signal(min(batch, rows), min(BATCHES * batch, rows))
        self.best = Snapshot(tuning.folder / "best.safetensors", self.optimizer)
        self.latest = Snapshot(tuning.folder / "latest.safetensors", self.optimizer)
        self._lowest = self._lowest_loss = math.inf
        self._waited = 0
        self._loss = self._dev = math.nan
        self._batches = order.batches(
            [tuning.scorer.length(e) for e in tuning.task.train], self.settings.batch_size, self.settings.seed
        )
        self._next = -1  # evaluations that were due
        self._probe_due = APART
        self.probing = True
        self.pending: Row | None = {"step": 0, "seconds": 0.0, "evaluations": 0} if self.settings.evals else None
        self._noted = self._taken = 0.0
        self.has_ended = self.interrupted = False

    def run(self) -> float:
        """Train to the end, and leave the model with the weights that the settings want kept. Returns the seconds of training."""
        if self.has_ended:
            return self.elapsed
        self.interrupted = False
        try:
            self._run()
        except KeyboardInterrupt:
            self.interrupted = True
            of = "the best weights until then" if self.best_step is not None else "the weights then"
            on = ", and --resume goes on" * (self.tuning.journal is not None)
            self.stopped = f"interrupted after step {self.optimizer.steps}; the result is of {of}{on}"
        note = {"ended": True, "interrupted": self.interrupted, "stopped": self.stopped}
        if not self.interrupted:  # what was interrupted is found again from the records before
            note |= self._state()
        if self.best_step is not None:
            self._go_back(note)
        elif self.tuning.journal is not None:
            self.tuning.journal.note(note)
            self.tuning.journal.sync()
        return self.elapsed

    def until(self, minutes: float = 0.0, steps: int = 0, evaluations: int = 0) -> None:
        """Have another `run` go on to other limits."""
        self.settings = dataclasses.replace(self.settings, minutes=minutes, steps=steps, evaluations=evaluations)
        self.retime()

    @property
    def evaluations(self) -> float:
        """How often steps have evaluated the batch, each branch counted; checks and probes are no steps."""
        return self.optimizer.steps * self.optimizer.evaluations

    def close(self) -> None:
        """Forget the kept weights."""
        self.best.remove()
        self.latest.remove()

    def _run(self) -> None:
        if self.optimizer.is_stuck:
            self.pending = None
            if not self._back_off("the loss was not finite"):
                self.stopped = f"ended at step {self.optimizer.steps}: the loss was not finite"
                return
        while True:
            if self.pending is not None:
                row, self.pending = self.pending, None
                if self._is_due():
                    self._evaluate(row)
                elif self.optimizer.steps:
                    self._log(row)
                if self.optimizer.steps:
                    self._tell()
            if self.settings.patience and self._waited >= self.settings.patience:
                self.stopped = f"ended at step {self.optimizer.steps}: {self._waited} evaluations were no better than the best"
                return
            done = self._done()
            if done >= 1:
                return
            try:
                self.pending = self._step(done)
            except NotFinite as error:
                if not self._back_off(str(error)):
                    self.stopped = f"ended at step {self.optimizer.steps}: {error}"
                    return

    def _step(self, done: float) -> Row:
        start, busy = time.perf_counter(), time.process_time()
        rate = BACK_OFF**self.back_offs * schedule(self.settings.schedule, done, self._left())
        for group in self.optimizer.param_groups:
            group["lr"] = self.tuning.lr * rate
        chosen = next(self._batches)
        value = self.tuning.step([self.tuning.task.train[i] for i in chosen])
        self.elapsed += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - busy
        row = self._seen(value, group["lr"])
        if self.optimizer.info is not None:
            row["spread"] = self.optimizer.info.spread
            self.flat_steps += self.optimizer.info.flat and not self._refuses
        if self.tuning.journal is not None:
            if self.elapsed - self._noted >= NOTED:
                self.tuning.journal.note({"seconds": self.elapsed})
                self._noted = self.elapsed
            if self.elapsed - self._taken >= TAKEN:
                self._taken = self.elapsed
                with contextlib.suppress(OSError):  # it would only have shortened a replay
                    self.take(self.latest)
        return row

    def _seen(self, loss: float, lr: float) -> Row:
        """The row of the step that was just taken."""
        self._loss = loss if math.isnan(self._loss) else 0.9 * self._loss + 0.1 * loss
        return {
            "step": self.optimizer.steps, "seconds": self.elapsed, "evaluations": self.evaluations, "loss": loss, "lr": lr,
        }  # fmt: skip

    def _is_due(self) -> bool:
        """Whether an evaluation is, and which is the next then."""
        if not self.settings.evals:
            return False
        due = int(self._done() * self.settings.evals + 1e-9)
        late, self._next = due > self._next, max(due, self._next)
        return late

    def _evaluate(self, row: Row) -> None:
        """Add what the dev split says to a row; keep the weights when they are the best, or go back to those."""
        tuning, metric = self.tuning, self.tuning.metric
        said = evaluation.answers(tuning.scorer, tuning.task.dev, tuning.rows)
        row["dev_loss"] = self._dev = said.loss
        if metric is not None and tuning.is_quick:
            row["dev_value"] = self._dev = evaluation.of(metric, tuning.scorer, tuning.task.dev, said)
        probes = self.probing and self.optimizer.perturbs and self.settings.objective == objectives.LOSS
        if probes and self.optimizer.steps >= self._probe_due:
            self._probe(row)
            self._probe_due = self.optimizer.steps + APART
        self._log(row)
        by_loss = self.settings.objective == objectives.LOSS or "dev_value" not in row
        worse = said.loss if by_loss else -self._dev
        if said.loss > DIVERGED * self._lowest_loss + 0.1 and self._back_off(f"the dev loss is {said.loss:.3g}"):
            return
        self._lowest_loss = min(self._lowest_loss, said.loss)
        self._waited += 1
        if worse < self._lowest:
            self._lowest, self._waited = worse, 0
            self._keep()
        if tuning.journal is not None:
            tuning.journal.note(self._state())

    def _probe(self, row: Row) -> None:
        tuning = self.tuning
        first = len(self.signal.squares) // DIRECTIONS * self.signal.examples % len(tuning.task.train)
        others = (tuning.task.train[first:] + tuning.task.train)[: self.signal.examples]  # than the last probe's
        chosen = sorted(others, key=tuning.scorer.length)  # in batches like a step's, of similar lengths
        size = self.signal.batch
        batches = [tuning.batch(chosen[first : first + size]) for first in range(0, len(chosen), size)]
        parts = [(batch, len(batch.labels), tuning.micro_batch(batch)) for batch in batches]
        self.signal.probe(self.optimizer, tuning.scorer.losses, parts)
        row["noise_scale"] = self.signal.noise_scale

    def _keep(self) -> None:
        """Keep the weights as the best ones."""
        if self.settings.keep != "best":
            return
        try:
            self.take(self.best)
            self.best_step = self.optimizer.steps
        except OSError as error:  # training goes on: what it has learnt is worth more
            self.tuning.say(f"the best weights cannot be kept ({error}); the run ends with the last ones")
            self.best.remove()
            self.best_step = None

    def take(self, snapshot: Snapshot) -> None:
        """Take a snapshot, once the journal that leads to it is on the disk."""
        about: dict[str, Any] = {"steps": self.optimizer.steps}
        if self.tuning.journal is not None:
            self.tuning.journal.sync()
            about |= {"offset": self.tuning.journal.offset, "crc": self.tuning.journal.crc}
        snapshot.take(about)

    def _back_off(self, why: str) -> bool:
        """Go back to the best weights with a lower learning rate. Returns whether that could be done."""
        if self.back_offs == BACK_OFFS or self.best_step is None:
            return False
        self.back_offs += 1
        step = self.optimizer.steps
        self._go_back(self._state())
        self.optimizer.go_on(step, self.optimizer.skipped, 0)
        back = f"back to the weights of step {self.best_step} with the learning rate times {BACK_OFF}"
        self.tuning.say(f"step {step}: {why}; {back}")
        return True

    def _go_back(self, note: Mapping[str, Any]) -> None:
        assert self.best_step is not None
        if self.tuning.journal is not None:
            self.tuning.journal.restore(self.best_step, note)
        self.best.restore()

    def _log(self, row: Row) -> None:
        self.history.append(row)
        if self.tuning.writes:
            with (self.tuning.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(as_line(row))
        for tracker in self.tuning.trackers:
            tracker.log(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def _tell(self) -> None:
        done, steps = self._done(), self.optimizer.steps
        pace = self.elapsed / steps
        left = max(0.0, self.elapsed / done - self.elapsed) if done > 0 else math.nan
        speed = min(self.settings.batch_size, len(self.tuning.task.train)) / pace if pace else math.nan
        metric = self.tuning.metric
        name = "dev " + (metric.name if metric and self.tuning.is_quick else "loss")
        self.tuning.listen(Progress("training", min(done, 1.0), steps, self._loss, self._dev, name, speed, pace, left))

    def _done(self) -> float:
        """The share of the run that is done: the largest of its shares of minutes, of steps and of evaluations."""
        shares = [0.0]
        if self.settings.minutes:
            shares.append(self.elapsed / (60 * self.settings.minutes))
        if self.settings.steps:
            shares.append(self.optimizer.steps / self.settings.steps)
        if self.settings.evaluations:
            shares.append(self.evaluations / self.settings.evaluations)
        return max(shares)

    def _left(self) -> float:
        """The share of the run that is left, to the bit as transformers' schedules have it when steps are the limit."""
        shares = [1.0]
        if self.settings.minutes:
            shares.append(max(0.0, 1 - self.elapsed / (60 * self.settings.minutes)))
        if self.settings.steps:
            shares.append((self.settings.steps - self.optimizer.steps) / self.settings.steps)
        if self.settings.evaluations:
            shares.append((self.settings.evaluations - self.evaluations) / self.settings.evaluations)
        return min(shares)

    def _state(self) -> dict[str, Any]:
        """What `hear` takes back: all that later steps depend on beside weights and records."""
        loop = {
            "elapsed": self.elapsed,
            "flat_steps": self.flat_steps,
            "back_offs": self.back_offs,
            "best_step": self.best_step,
            "lowest": self._lowest,
            "lowest_loss": self._lowest_loss,
            "waited": self._waited,
            "loss": self._loss,
            "dev": self._dev,
            "next": self._next,
            "probe_due": self._probe_due,
        }
        return {"loop": loop, "forwards": self.optimizer.forwards, "signal": [self.signal.squares, self.signal.variances]}

    def retime(self) -> None:
        """Evaluations are due anew: the run was given other limits than it had."""
        self._next = max(0, int(self._done() * self.settings.evals + 1e-9))

    def _take(self, note: Mapping[str, Any]) -> None:
        for name in self._state()["loop"]:
            value = note["loop"][name]
            setattr(self, name if hasattr(self, name) else f"_{name}", NO_NUMBER[name] if value is None else value)
        self.optimizer.forwards = note["forwards"]
        self.signal.squares, self.signal.variances = map(list, note["signal"])

    def hear(self, records: Iterable[Record]) -> bool:
        """Count as if what records say had been done; the weights are the caller's.

        Returns whether the records end with the end of a run that is to go on: it was interrupted, or has more to do now.
        """
        steps = skipped = in_row = since = 0
        ended: Mapping[str, Any] = {}
        for record in records:
            if isinstance(record, (Step, Skip)):
                steps, since, ended = steps + 1, since + 1, {}
                skips = isinstance(record, Skip)
                skipped, in_row = skipped + skips, in_row + 1 if skips else 0
                self.optimizer.steps = steps
                self.optimizer.forwards += self.optimizer.evaluations
                self.flat_steps += isinstance(record, Step) and not record.multipliers.any() and not self._refuses
                self.pending = self._seen(record.loss, float(record.lrs[-1]) if isinstance(record, Step) else math.nan)
                self.history.append(self.pending)
                continue
            note = record.note
            ended = note if "ended" in note else {}
            if "seconds" in note:
                self.elapsed, since = float(note["seconds"]), 0
            if "loop" in note:
                self._take(note)
                self.pending, since = None, 0
            if "settings" in note:
                self.retime()
            in_row = 0 if isinstance(record, Restore) else in_row
        if steps and self.pending is not None:
            self.history.pop()  # it is logged when it is seen whether an evaluation is due
        self.elapsed = self._noted = self._taken = self.elapsed + since * self.elapsed / max(1, steps - since)
        self.optimizer.go_on(steps, skipped, in_row)
        next(itertools.islice(self._batches, steps, steps), None)
        self.has_ended = bool(ended) and not ended["interrupted"] and (self._done() >= 1 or ended["stopped"] is not None)
        self.stopped = ended["stopped"] if self.has_ended else None
        return bool(ended) and not self.has_ended


def as_line(row: Row) -> str:
    """A row of metrics.jsonl."""
    return json.dumps({name: value for name, value in row.items() if math.isfinite(value)}) + "\n"


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
        "evaluations": loop.evaluations,
        "state_bytes": loop.optimizer.state_bytes,
        "flat_steps": loop.flat_steps,
        "back_offs": loop.back_offs,
        "noise_scale": finite,
        "noise_scale_range": ends if finite else None,
        "signal_to_noise": loop.signal.to_noise if finite else None,
        "stopped": loop.stopped,
    }
