"""One run in a fresh process, so that no other run affects its peak of memory and its first steps.

`python -m zerograd.bench.process` reads a request, one JSON object, from standard input, and writes JSON lines to
standard output: `done`, the share of training; `dev`, an evaluation on the dev split; and last `result` or `error`.
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

from zerograd.errors import RunFailed
from zerograd.machine import environment, memory, provenance
from zerograd.machine.files import write_text
from zerograd.machine.quiet import quiet
from zerograd.text.judge import Judge
from zerograd.text.metrics import metric
from zerograd.tune.hidden_states import cached_hidden_states
from zerograd.tune.loop import Loop
from zerograd.tune.progress import Progress
from zerograd.tune.schedule import Limits, evaluations_of
from zerograd.tune.settings import TuneSettings, from_record
from zerograd.tune.setup import Setup, set_up
from zerograd.tune.sinks import Sinks

Send = Callable[[dict[str, Any]], None]

MODULE = "zerograd.bench.process"


@contextlib.contextmanager
def start_run(settings: TuneSettings, baseline_folder: Path | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    """Start a run; gives its messages. The run is stopped at the end of the block.

    baseline_folder: the folder of untrained models' answers, which is filled when needed; None for a run without a
    test. The run's own folder, with the cache of hidden states, exists while it runs.
    Raises RunFailed with the error of the run.
    """
    request = {"settings": dataclasses.asdict(settings), "baseline_folder": baseline_folder and str(baseline_folder)}
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # only the parent handles Ctrl-C
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # its exit is reported below
            child.stdin.write(json.dumps(request))
            child.stdin.close()
        yield _messages(child)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        shutil.rmtree(settings.out, ignore_errors=True)


def _messages(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        message = json.loads(line)
        if "error" in message:
            raise RunFailed(message["error"])
        yield message
        if "result" in message:
            return
    raise RunFailed(f"the run ended with exit code {child.wait()} and no result")


class DevTracker:
    """A tracker that sends evaluations on the dev split."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.curve: list[dict[str, float]] = []

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send it, where it is a look at the dev split."""
        if "dev_loss" in values:
            names = ("evaluations", "seconds", "dev_loss", "dev_value")
            self.curve.append({name: values[name] for name in names if math.isfinite(values.get(name, math.nan))})
            self.send({"dev": self.curve[-1]})

    def end(self, result: Mapping[str, Any]) -> None:
        """Nothing to do."""


def train(settings: TuneSettings, baseline_folder: Path | None, send: Send) -> dict[str, Any]:
    """Train until every limit of the settings is reached, and test the weights at each limit.

    Test results influence nothing, and only the untrained model's answers stay on disk. Without `baseline_folder` no
    test row is scored.
    """
    listen, dev = _SendProgress(send), DevTracker(send)
    setup = set_up(settings, listen, self_check=baseline_folder is not None)
    test = TestRows(setup) if baseline_folder else None
    before = test.baseline(baseline_folder) if test and baseline_folder else {}
    setup.warm_up(listen)
    memory.reset_peak()
    setup.folder.mkdir(parents=True, exist_ok=True)
    with cached_hidden_states(setup):
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
    """Train to each limit in turn. Returns (costs and right answers at each limit, peak bytes of training)."""
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


class _SendProgress:
    """Sends the share of training that is done, in steps of a percent."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self._sent = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.phase == "training" and abs(progress.done - self._sent) >= 0.01:
            self._sent = progress.done
            self.send({"done": self._sent})


class TestRows:
    """The test rows of a run, and the rows that the model answers right."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.judge = Judge(setup.scorer, setup.task.test, metric("accuracy"))

    def right(self) -> str:
        """A digit per row: 1 if the present model answers right, else 0."""
        values = self.judge.rows(self.setup.answers(self.setup.task.test, "test"))
        assert values is not None
        return "".join("01"[value == 1] for value in values)

    def baseline(self, folder: Path) -> dict[str, Any]:
        """The fields of a row about the test rows and the untrained model, which is tested once for all runs that share
        the folder.
        """
        setup, settings = self.setup, self.setup.settings
        ids = json.dumps([example.id for example in setup.task.test])
        name = hashlib.blake2b((setup.task.spec.to_yaml() + ids).encode(), digest_size=8).hexdigest()
        path = folder / f"{name}-{setup.identity}-{settings.max_tokens}-{settings.chat}-{settings.precision}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"right": self.right()}))
        right = str(json.loads(path.read_text(encoding="utf-8"))["right"])
        return {"test_rows": len(setup.task.test), "test": name, "right_before": right}


def main() -> None:
    """Run the request on standard input."""
    environment.prepare()
    quiet()
    messages, sys.stdout = sys.stdout, sys.stderr  # output of libraries is not a message

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=messages, flush=True)

    request = json.loads(sys.stdin.read())
    folder = request["baseline_folder"]
    try:
        settings = from_record(request["settings"], "the request")
        send({"result": train(settings, Path(folder) if folder else None, send)})
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        text = " ".join(str(error).split())
        send({"error": text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
