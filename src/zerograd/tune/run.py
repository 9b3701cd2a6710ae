"""Fine-tuning from settings to a finished run: `tune(settings)` is what the command line runs."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from zerograd.errors import RewardFailed
from zerograd.journal import Writer
from zerograd.machine import memory
from zerograd.machine.files import locked_folder
from zerograd.text.judge import Judge, judge_run, predictions
from zerograd.tune import lr_finder, results
from zerograd.tune.baseline import Baseline, baseline
from zerograd.tune.folder import BASELINE, METRICS, clear, require_free
from zerograd.tune.hidden_states import cached_hidden_states
from zerograd.tune.loop import Loop
from zerograd.tune.off_task import OffTask
from zerograd.tune.progress import Listener, ignore_progress
from zerograd.tune.record import create_journal
from zerograd.tune.results import Result
from zerograd.tune.resume import resume as resume_run
from zerograd.tune.reward_results import on_rewards
from zerograd.tune.settings import AUTO, TuneSettings
from zerograd.tune.setup import Setup, set_up
from zerograd.tune.sinks import Sinks
from zerograd.tune.state import LoopState
from zerograd.tune.trackers import TensorBoard, Tracker, load_trackers


def tune(
    settings: TuneSettings,
    listen: Listener = ignore_progress,
    say: Callable[[str], None] = lambda line: None,
    *,
    resume: bool = False,
) -> Result:
    """Fine-tune a model on a task with forward passes only, evaluate it before and after, and write the run's folder.

    listen: takes progress. say: takes messages of one line. resume: continue the run in the settings' folder. Returns
    the numbers of the run by name.
    Raises ValueError or FileNotFoundError before anything is written, OSError if the disk fails, and KeyboardInterrupt
    for Ctrl-C in an evaluation before or after training.
    """
    return run(set_up(settings, listen, say, resume=resume), listen, say)


def run(setup: Setup, listen: Listener = ignore_progress, say: Callable[[str], None] = lambda line: None) -> Result:
    """Train and evaluate a setup, and write its folder; the rest of `tune`."""
    trackers = [TensorBoard(), *load_trackers(setup.settings.trackers)]
    with locked_folder(setup.folder):
        if not setup.resumes:
            require_free(setup.folder)
        setup.warm_up(listen)
        judge = Judge(setup.scorer, setup.task.test, setup.metric)
        before = baseline(setup, judge, listen)
        apart = OffTask(setup.scorer, setup.settings.off_task) if setup.settings.reward and setup.settings.off_task else None
        memory.reset_peak()
        with cached_hidden_states(setup):
            if setup.settings.lr == AUTO and not setup.resumes:
                setup.lr = lr_finder.lr_range_test(setup, listen)
                say(f"the learning rate is {setup.lr:.3g}, by a range test")
            sinks = Sinks(listen, say, metrics=setup.folder / METRICS)
            return _recorded(setup, judge, before, apart, trackers, sinks)


def _recorded(
    setup: Setup, judge: Judge, before: Baseline, apart: OffTask | None, trackers: Sequence[Tracker], sinks: Sinks
) -> Result:
    """Train and evaluate with journal and trackers. If nothing interrupted the run, remove the files that only resuming
    needs.
    """
    state, journal = _begin(setup, sinks)
    with _recording(setup, journal), _tracking(setup, trackers, sinks) as result:
        loop = Loop(setup, state, journal, sinks)
        result |= _train_and_judge(setup, judge, before, apart, loop, sinks)
        if journal is not None:
            journal.sync()
    loop.checkpoints.remove()
    if not state.interrupted:
        if setup.scorer.cache is not None:
            setup.scorer.cache.remove()
        (setup.folder / BASELINE).unlink(missing_ok=True)
    return result


def _begin(setup: Setup, sinks: Sinks) -> tuple[LoopState, Writer | None]:
    """(the loop's first state, the run's journal). A method with backward passes has no journal, since its steps cannot
    be replayed.
    """
    if not setup.resumes:
        clear(setup.folder)
    if setup.optimizer.method.takes_backward:
        return LoopState.of(setup), None
    return resume_run(setup, sinks) if setup.resumes else (LoopState.of(setup), create_journal(setup))


@contextlib.contextmanager
def _recording(setup: Setup, journal: Writer | None) -> Iterator[None]:
    """Send the optimiser's steps to the journal for the length of the block. An OSError says how to continue the run."""
    if journal is not None:
        setup.optimizer.record = journal.add
    try:
        yield
    except RewardFailed as error:
        raise RewardFailed(f"{error}; the journal has the steps before: continue with --resume {setup.folder}") from error
    except OSError as error:
        problem = f"run {setup.folder} stopped after step {setup.optimizer.steps}: {error}"
        again = f"method {setup.settings.method} has no journal to resume from: fix the problem and start again"
        resume = f"the journal has all steps: fix the problem and continue with --resume {setup.folder}"
        raise OSError(f"{problem}; {again if journal is None else resume}") from error
    finally:
        setup.optimizer.record = None
        with contextlib.suppress(OSError):
            if journal is not None:
                journal.close()


@contextlib.contextmanager
def _tracking(setup: Setup, trackers: Sequence[Tracker], sinks: Sinks) -> Iterator[Result]:
    """Send rows to trackers for the length of the block, and then the result, which the block fills in."""
    result: Result = {}
    try:
        for tracker in trackers:
            tracker.begin(setup.folder, dataclasses.asdict(setup.settings))
            sinks.trackers.append(tracker)
        yield result
    finally:
        for tracker in sinks.trackers:
            tracker.end(result)


def _train_and_judge(setup: Setup, judge: Judge, baseline: Baseline, apart: OffTask | None, loop: Loop, sinks: Sinks) -> Result:
    """Train, save the model, evaluate it, and write the files of a finished run."""
    state = loop.run()
    training_peak = memory.peak_bytes()
    results.save_model(setup)
    try:
        after = setup.answers(setup.task.test, "tuned, test", sinks.listen)
    except KeyboardInterrupt:
        message = f"interrupted after training; the tuned model is {setup.folder}/model, not evaluated"
        raise KeyboardInterrupt(message) from None
    result = results.summary(setup, state) | judge_run(judge, setup.scorer, baseline.before, after, baseline.fit, baseline.shots)
    if setup.settings.reward:
        result |= on_rewards(setup, baseline.before, after, state) | (apart.after(setup.scorer) if apart else {})
    result |= {
        "seconds": state.seconds,
        "seconds_per_step": state.seconds / max(1, setup.optimizer.steps),
        "peak_bytes": training_peak,
        "inference_peak_bytes": baseline.inference_peak_bytes,
        "seconds_total": time.perf_counter() - setup.started,
    }
    rows = list(predictions(setup.scorer, judge, baseline.before, after))
    results.write_results(setup, result, state.history, rows)
    return result
