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

from zerograd.machine import environment
from zerograd.machine import provenance as machine
from zerograd.tune.settings import TuneSettings, from_mapping

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
    from zerograd.machine import memory
    from zerograd.text.judge import Judge
    from zerograd.text.metrics import metric
    from zerograd.tune.run import Tuning

    told = 0.0

    def listen(progress: Any) -> None:
        nonlocal told
        if progress.phase == "training" and abs(progress.done - told) >= 0.01:
            told = progress.done
            say({"done": told})

    tuning = Tuning(settings, listen)
    loop, dev = tuning.loop, Dev(say)
    loop.probing = False
    tuning.trackers.append(dev)
    judge = Judge(tuning.scorer, tuning.task.test, metric("accuracy")) if untouched else None

    def right() -> str:
        assert judge is not None
        found = judge.rows(tuning.answers(tuning.task.test, "test"))
        assert found is not None
        return "".join("01"[value == 1] for value in found)

    result: dict[str, Any] = {"lr": tuning.lr}
    if untouched is not None:
        ids = json.dumps([example.id for example in tuning.task.test])
        test = hashlib.blake2b((tuning.task.spec.to_yaml() + ids).encode(), digest_size=8).hexdigest()
        kept = untouched / f"{test}-{tuning.identity}-{settings.max_tokens}-{settings.chat}-{settings.storage}.json"
        result |= {"test_rows": len(tuning.task.test), "test": test, "right_before": _kept(kept, right)}
    tuning.optimizer.self_check = judge is not None  # of what is reported
    tuning.attach()
    memory.reset_peak()
    peak, parts = 0, {}
    tuning.folder.mkdir(parents=True, exist_ok=True)
    limits = {"evaluations": settings.evaluations, "seconds": 60 * settings.minutes}
    limits = {name: limit for name, limit in limits.items() if limit}
    with tuning.cached():
        while limits:
            tuning.train()
            if loop.interrupted:
                raise KeyboardInterrupt
            peak = max(peak, memory.peak_bytes())
            spent = {"evaluations": loop.evaluations, "seconds": loop.elapsed, "cpu_seconds": loop.cpu_seconds}
            reached = [name for name, limit in limits.items() if spent[name] >= limit or loop.stopped is not None]
            part = spent | ({"right": right()} if judge is not None else {})
            memory.reset_peak()
            for name in reached:
                parts[name] = part
                del limits[name]
            if limits:
                loop.until(minutes=limits.get("seconds", 0.0) / 60, evaluations=int(limits.get("evaluations", 0)))
    return result | {
        "at": parts,
        "curve": dev.curve,
        "steps": tuning.optimizer.steps,
        "peak_bytes": peak,
        "state_bytes": tuning.optimizer.state_bytes,
        "weight_bytes": tuning.weight_bytes,
        "stopped": loop.stopped,
        "load": machine.load(),
    }


def _kept(path: Path, ask: Callable[[], str]) -> str:
    """What a file holds, or what it gets to hold now."""
    from zerograd.machine.files import write_text

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"right": ask()}))
    return str(json.loads(path.read_text(encoding="utf-8"))["right"])


def main() -> None:
    """A run as it was requested."""
    environment.prepare()
    from zerograd.cli import shown

    shown.quiet()
    lines, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no line of ours

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=lines, flush=True)

    request = json.loads(sys.stdin.read())
    folder = request["untouched"]
    try:
        settings = from_mapping(TuneSettings, request["settings"], "the request")
        say({"result": train(settings, Path(folder) if folder else None, say)})
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        said = " ".join(str(error).split())
        say({"error": said if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {said}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
