"""One run in a process of its own, so that its peak of memory and its first steps are its own.

`python -m zerograd.bench.process` reads a request, one JSON object, from standard input, and writes what it does as JSON lines to
standard output: `done`, a share; `dev`, a look at the dev split; and last `result`, or `error`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zerograd.machine import environment, memory, provenance
from zerograd.machine.files import write_text
from zerograd.machine.quiet import quiet
from zerograd.text.judge import Judge
from zerograd.text.metrics import metric
from zerograd.tune.hidden_states import hidden_states_kept
from zerograd.tune.loop import Loop
from zerograd.tune.progress import Progress
from zerograd.tune.schedule import Limits, evaluations_of
from zerograd.tune.settings import TuneSettings, from_record
from zerograd.tune.setup import Setup, set_up
from zerograd.tune.sinks import Sinks

Say = Callable[[dict[str, Any]], None]

MODULE = "zerograd.bench.process"


@contextlib.contextmanager
def started(settings: TuneSettings, untouched: Path | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    """What a run says, line by line; it is stopped when nobody listens any more.

    untouched: the folder that has, or gets, what untouched models answer; None for a run that is not to be tested. The run's own
    folder, which hidden states are kept in, is there while it runs.
    Raises RunFailed with the one line that the run ended with.
    """
    request = {"settings": dataclasses.asdict(settings), "untouched": untouched and str(untouched)}
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # Ctrl-C is its parent's
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # its end says why
            child.stdin.write(json.dumps(request))
            child.stdin.close()
        yield _lines(child)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        shutil.rmtree(settings.out, ignore_errors=True)


def _lines(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        said = json.loads(line)
        if "error" in said:
            raise RunFailed(said["error"])
        yield said
        if "result" in said:
            return
    raise RunFailed(f"the run ended with exit code {child.wait()} and no result")


class RunFailed(ValueError):
    """A run ended without a result; in one line why."""


class Dev:
    """A tracker that says what was seen on the dev split."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.curve: list[dict[str, float]] = []

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Say it, where it is a look at the dev split."""
        if "dev_loss" in values:
            names = ("evaluations", "seconds", "dev_loss", "dev_value")
            self.curve.append({name: values[name] for name in names if math.isfinite(values.get(name, math.nan))})
            self.say({"dev": self.curve[-1]})

    def end(self, result: Mapping[str, Any]) -> None:
        """Nothing to do."""


def train(settings: TuneSettings, untouched: Path | None, say: Say) -> dict[str, Any]:
    """Train until every limit of the settings is reached, and test the weights as they are at each.

    Nothing depends on what the test rows say, and nothing stays written but what the untouched model says of them. Without
    `untouched` no test row is scored at all.
    """
    listen, dev = _Share(say), Dev(say)
    setup = set_up(settings, listen, self_check=untouched is not None)
    test = TestRows(setup) if untouched else None
    before = test.before(untouched) if test and untouched else {}
    setup.warm_up(listen)
    memory.reset_peak()
    setup.folder.mkdir(parents=True, exist_ok=True)
    with hidden_states_kept(setup):
        loop = Loop(setup, sinks=Sinks(listen, trackers=[dev]), probing=False)
        parts, peak = _to_each_limit(loop, test)
    return {
        "lr": setup.lr,
        **before,
        "at": parts,
        "curve": dev.curve,
        "steps": setup.optimizer.steps,
        "peak_bytes": peak,
        "state_bytes": setup.optimizer.state_bytes,
        "weight_bytes": setup.weight_bytes,
        "stopped": loop.state.stopped,
        "load": provenance.load(),
    }


def _to_each_limit(loop: Loop, test: TestRows | None) -> tuple[dict[str, Any], int]:
    """Train to one limit after the other. Returns (what was spent and answered at each, the peak of memory in training)."""
    settings, state = loop.setup.settings, loop.state
    limits = {"evaluations": settings.evaluations, "seconds": 60 * settings.minutes}
    limits = {name: limit for name, limit in limits.items() if limit}
    parts: dict[str, Any] = {}
    peak, other_limits = 0, None
    while limits:
        loop.run(other_limits)
        if state.interrupted:
            raise KeyboardInterrupt
        peak = max(peak, memory.peak_bytes())
        spent = {
            "evaluations": evaluations_of(loop.setup.optimizer),
            "seconds": state.seconds,
            "cpu_seconds": state.cpu_seconds,
        }
        part = spent | ({"right": test.right()} if test else {})
        memory.reset_peak()
        for name in [name for name, limit in limits.items() if spent[name] >= limit or state.stopped is not None]:
            parts[name] = part
            del limits[name]
        other_limits = Limits(limits.get("seconds", 0.0) / 60, evaluations=int(limits.get("evaluations", 0)))
    return parts, peak


class _Share:
    """Takes progress, and says the share of training that is done, in steps of a percent."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self._said = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.phase == "training" and abs(progress.done - self._said) >= 0.01:
            self._said = progress.done
            self.say({"done": self._said})


class TestRows:
    """The test rows of a run, and which of them the model answers right."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.judge = Judge(setup.scorer, setup.task.test, metric("accuracy"))

    def right(self) -> str:
        """A digit a row, 1 where the model as it is now answers right."""
        found = self.judge.rows(self.setup.answers(self.setup.task.test, "test"))
        assert found is not None
        return "".join("01"[value == 1] for value in found)

    def before(self, folder: Path) -> dict[str, Any]:
        """What a row says of the test rows and of the untouched model, which is asked once for all runs that share the folder."""
        setup, settings = self.setup, self.setup.settings
        ids = json.dumps([example.id for example in setup.task.test])
        name = hashlib.blake2b((setup.task.spec.to_yaml() + ids).encode(), digest_size=8).hexdigest()
        path = folder / f"{name}-{setup.identity}-{settings.max_tokens}-{settings.chat}-{settings.storage}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"right": self.right()}))
        right = str(json.loads(path.read_text(encoding="utf-8"))["right"])
        return {"test_rows": len(setup.task.test), "test": name, "right_before": right}


def main() -> None:
    """A run as it was requested."""
    environment.prepare()
    quiet()
    lines, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no line of ours

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=lines, flush=True)

    request = json.loads(sys.stdin.read())
    folder = request["untouched"]
    try:
        settings = from_record(request["settings"], "the request")
        say({"result": train(settings, Path(folder) if folder else None, say)})
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        said = " ".join(str(error).split())
        say({"error": said if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {said}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
