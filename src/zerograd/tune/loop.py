"""The training loop: steps until the limits, evaluations on the dev split between them."""

from __future__ import annotations

import contextlib
import itertools
import math
import time

from zerograd.errors import NotFinite
from zerograd.journal import Writer
from zerograd.optim.base import Asked
from zerograd.quantised.write import unsound
from zerograd.rewards import RewardObjective
from zerograd.rewards.evaluator import in_numbers
from zerograd.text import evaluation
from zerograd.text.data import order
from zerograd.text.objectives import LOSS
from zerograd.tune.checkpoints import BACK_OFF_FACTOR, Checkpoints
from zerograd.tune.noise_scale import STEPS_BETWEEN_PROBES
from zerograd.tune.progress import Progress
from zerograd.tune.schedule import Limits, schedule
from zerograd.tune.setup import Setup
from zerograd.tune.sinks import Row, Sinks
from zerograd.tune.state import LoopState

DIVERGENCE_FACTOR = 1.5
"""A run has diverged when its dev loss exceeds the lowest one times this, plus 0.1."""

LEAST_RADIUS = 0.05
"""The least factor of the smoothing radius: a smaller one sees rounding alone."""

NOTE_SECONDS = 60.0
"""Seconds of training between notes of the training time."""

SNAPSHOT_SECONDS = 600.0
"""Seconds of training between snapshots of the latest weights."""


class Loop:
    """The training loop of a setup.

    state: the state to begin from, updated as the loop runs. journal: takes notes of the state; None for a run without
    a journal. sinks: where progress, messages and rows go. probing: whether to measure the noise scale.
    """

    def __init__(
        self,
        setup: Setup,
        state: LoopState | None = None,
        journal: Writer | None = None,
        sinks: Sinks | None = None,
        probing: bool = True,
    ) -> None:
        self.setup = setup
        self.state = LoopState.of(setup) if state is None else state
        self.journal = journal
        self.sinks = Sinks() if sinks is None else sinks
        self.probing = probing
        self.checkpoints = Checkpoints(setup.folder, setup.optimizer, journal)
        self.limits = Limits.of(setup.settings)
        self._noted_at = self._saved_at = self.state.seconds
        self._asked: Asked | None = None
        self._radii = [group["eps"] for group in setup.optimizer.param_groups]
        lengths = [setup.scorer.length(example) for example in setup.task.train]
        self._batches = order.batches(lengths, setup.settings.batch_size, setup.settings.seed)
        next(itertools.islice(self._batches, setup.optimizer.steps, setup.optimizer.steps), None)

    def run(self, limits: Limits | None = None) -> LoopState:
        """Train to the limits, and leave the model with the best or the last weights, as the settings say.

        limits: new limits; by default those of the settings. Returns the state, from which another call continues.
        """
        state, optimizer = self.state, self.setup.optimizer
        if limits is not None:
            self.limits = limits
            state.reschedule(self._done(), self.setup.settings.evals)
        if state.has_ended:
            return state
        state.interrupted = False
        try:
            self._train()
        except KeyboardInterrupt:
            state.interrupted = True
            weights = "the best weights so far" if state.best_step is not None else "the last weights"
            resume = "; --resume continues the run" * (self.journal is not None)
            state.stopped = f"interrupted after step {optimizer.steps}; the result is of {weights}{resume}"
        note = {"ended": True, "interrupted": state.interrupted, "stopped": state.stopped}
        if not state.interrupted:  # an interrupted run continues from the records before
            note |= state.to_note(optimizer.forwards)
        if state.best_step is not None:
            self.checkpoints.go_back(state.best_step, note)
        elif self.journal is not None:
            self.journal.note(note)
            self.journal.sync()
        return state

    def _train(self) -> None:
        state, optimizer, patience = self.state, self.setup.optimizer, self.setup.settings.patience
        if optimizer.is_stuck:
            state.pending = None
            if not self._back_off("the loss was not finite"):
                state.stopped = f"ended at step {optimizer.steps}: the loss was not finite"
                return
        while True:
            if state.pending is not None:
                row, state.pending = state.pending, None
                if self._evaluation_is_due():
                    self._evaluate(row)
                elif optimizer.steps:
                    self._log(row)
                if optimizer.steps:
                    self._report_progress()
            if patience and state.waited >= patience:
                state.stopped = f"ended at step {optimizer.steps}: {state.waited} evaluations without an improvement"
                return
            if self._done() >= 1:
                return
            try:
                state.pending = self._step()
            except NotFinite as error:
                if not self._back_off(str(error)):
                    state.stopped = f"ended at step {optimizer.steps}: {error}"
                    return

    def _step(self) -> Row:
        """Take a step on the next batch. Returns the step's row."""
        setup, state, optimizer = self.setup, self.state, self.setup.optimizer
        start, busy = time.perf_counter(), time.process_time()
        left = self.limits.left(state.seconds, optimizer)
        lr = setup.lr * (BACK_OFF_FACTOR**state.back_offs * schedule(setup.settings.schedule, self._done(), left))
        self._set_radius()
        loss = self._told(lr) if setup.settings.lag else self._stepped(lr)
        state.seconds += time.perf_counter() - start
        state.cpu_seconds += time.process_time() - busy
        row = state.step_row(loss, lr, setup)
        if isinstance(setup.objective, RewardObjective) and setup.objective.last is not None:
            row |= in_numbers(setup.objective.last, setup.objective.rewards.names)
        if optimizer.info is not None:
            row["spread"] = optimizer.info.spread
            state.flat_steps += optimizer.info.flat and not setup.refuses_steps
        if self.journal is not None:
            self._note_seconds(self.journal)
        return row

    def _stepped(self, lr: float) -> float:
        """Take a step on the next batch at a learning rate. Returns its loss."""
        self._set_rate(lr)
        return self.setup.step([self.setup.task.train[i] for i in next(self._batches)])

    def _told(self, lr: float) -> float:
        """Make the answers of the next batch while the rewards of the one before are awaited, then take the step of that one."""
        for _ in range(1 + (self._asked is None)):
            asked, before = self.setup.ask([self.setup.task.train[i] for i in next(self._batches)]), self._asked
            self._asked = asked
        assert before is not None
        self._set_rate(lr)
        return self.setup.optimizer.tell(before)

    def _set_rate(self, lr: float) -> None:
        for group in self.setup.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

    def _set_radius(self) -> None:
        """Set the smoothing radius by its schedule."""
        if self.setup.settings.eps_schedule == "cosine":
            factor = max(LEAST_RADIUS, schedule("cosine", self._done(), 0.0))
            for group, radius in zip(self.setup.optimizer.param_groups, self._radii, strict=True):
                group["eps"] = radius * factor

    def _note_seconds(self, journal: Writer) -> None:
        """Note the training time every NOTE_SECONDS, and save the weights every SNAPSHOT_SECONDS, to shorten a replay."""
        seconds = self.state.seconds
        if seconds - self._noted_at >= NOTE_SECONDS:
            journal.note({"seconds": round(seconds, 3)})
            self._noted_at = seconds
        if seconds - self._saved_at >= SNAPSHOT_SECONDS:
            self._saved_at = seconds
            with contextlib.suppress(OSError):  # without the snapshot a replay is only longer
                self.checkpoints.save_snapshot(self.checkpoints.latest)

    def _evaluation_is_due(self) -> bool:
        """Whether an evaluation is due now; if so, it is counted."""
        evals, state = self.setup.settings.evals, self.state
        if not evals:
            return False
        due = int(self._done() * evals + 1e-9)
        is_due, state.evaluations_due = due > state.evaluations_due, max(due, state.evaluations_due)
        return is_due

    def _evaluate(self, row: Row) -> None:
        """Evaluate on the dev split and log the row; save the weights if they are the best, or back off after a
        divergence.
        """
        setup, state = self.setup, self.state
        answers, on_reward = setup.dev_answers(), setup.task.spec.open
        row["dev_loss"] = state.dev = answers.loss
        if on_reward:
            row["dev_reward"] = state.dev = -answers.loss
        if setup.dev_metric is not None:
            row["dev_value"] = state.dev = evaluation.score(setup.dev_metric, setup.scorer, setup.task.dev, answers)
        is_of_loss = setup.settings.objective == LOSS
        probes = self.probing and setup.optimizer.method.perturbs and is_of_loss and not on_reward
        if probes and setup.optimizer.steps >= state.next_probe:
            self._probe(row)
            state.next_probe = setup.optimizer.steps + STEPS_BETWEEN_PROBES
        self._log(row)
        diverged = answers.loss > DIVERGENCE_FACTOR * state.lowest_loss + 0.1 and not on_reward
        if diverged and self._back_off(f"the dev loss is {answers.loss:.3g}"):
            return
        why = unsound(setup.model)
        if why:  # never the best, whether or not there is a way back
            self._back_off(why)
            return
        value = answers.loss if is_of_loss or "dev_value" not in row else -state.dev
        state.lowest_loss = min(state.lowest_loss, answers.loss)
        state.waited += 1
        if value < state.lowest:
            state.lowest, state.waited = value, 0
            if setup.settings.keep == "best":
                self.checkpoints.keep_best(state, self.sinks.say)
        if self.journal is not None:
            self.journal.note(state.to_note(setup.optimizer.forwards))

    def _probe(self, row: Row) -> None:
        """Measure the noise scale on the training rows after those of the last probe, in batches of similar lengths."""
        setup, noise = self.setup, self.state.noise
        train = setup.task.train
        first = noise.probes * noise.probe_examples % len(train)
        examples = sorted((train[first:] + train)[: noise.probe_examples], key=setup.scorer.length)
        starts = range(0, len(examples), noise.batch_size)
        batches = [setup.batch(examples[start : start + noise.batch_size]) for start in starts]
        parts = [(batch, len(batch.labels), setup.micro_batch(batch)) for batch in batches]
        noise.probe(setup.optimizer, setup.scorer.losses, parts)
        row["noise_scale"] = noise.examples

    def _back_off(self, why: str) -> bool:
        self._asked = None  # its answers are of the weights that are left
        return self.checkpoints.back_off(self.state, why, self.sinks.say)

    def _log(self, row: Row) -> None:
        self.state.history.append(row)
        self.sinks.log(row)

    def _report_progress(self) -> None:
        setup, state, steps = self.setup, self.state, self.setup.optimizer.steps
        done, pace = self._done(), state.seconds / steps
        left = max(0.0, state.seconds / done - state.seconds) if done > 0 else math.nan
        speed = min(setup.settings.batch_size, len(setup.task.train)) / pace if pace else math.nan
        name = "dev " + (setup.dev_metric.name if setup.dev_metric else "loss")
        self.sinks.listen(Progress("training", min(done, 1.0), steps, state.mean_loss, state.dev, name, speed, pace, left))

    def _done(self) -> float:
        """The share of the run that is done."""
        return self.limits.done(self.state.seconds, self.setup.optimizer)
