"""One real run killed again and again at random instants, and gone on with each time: does it end with the straight run's bits?

python benchmarks/crash.py --kills 200 --json

Kills are SIGKILL. Every other one comes at an instant of a tenth to the whole of the straight run's time, loading included; the
others between a process's first record and the run's end: inside forward passes, records, updates, evaluations and snapshots. A
run that ends between kills is begun anew, and the last one ends. The last line is one JSON object: kills, resumed, equal (every
run that ended has the straight run's weights), lost_steps (logged, not journalled).

Flags of `tune` may follow; with `--reward json` the run is on thirty prompts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from record import save

from zerograd.journal import Reader
from zerograd.update import Skip, Step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--json", action="store_true", help="end with one JSON object, as without it")
    parser.add_argument("--name", default="", help="of the record that is kept, with every kill")
    parsed, more = parser.parse_known_args()
    draw = random.Random(parsed.seed)
    instants = [0.1 + 0.9 * (i + draw.random()) / parsed.kills for i in range(parsed.kills)]  # of the straight run's seconds
    draw.shuffle(instants)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = prompts(folder) if "--reward" in more else rows(folder)
        flags = ["--model", parsed.model, "--data", str(data), "--steps", str(parsed.steps), "--minutes", "0", "--evals", "3"]
        flags += ["--batch-size", "8", *more]
        straight, start = folder / "straight", time.monotonic()
        process = tune("--out", str(straight), *flags)
        recorded(process, straight, 0)
        loading = time.monotonic() - start
        if process.wait():
            raise SystemExit("the straight run failed")
        seconds = time.monotonic() - start
        expected = digest(straight)
        run, kills, resumed, ended, equal, lost, where = folder / "run", 0, 0, 0, True, 0, Counter[str]()
        while kills < parsed.kills:
            going = (run / "journal.zgj").exists() and not (run / "result.json").exists()
            process = tune("--resume", str(run)) if going else tune("--out", str(run), *flags)
            resumed += going
            try:
                if kills % 2:
                    process.wait(instants[kills] * seconds)
                else:
                    recorded(process, run, size(run))
                    process.wait(instants[kills] * (seconds - loading))
                if process.returncode:
                    raise SystemExit(f"a run ended with {process.returncode}")
                ended += 1
                equal &= digest(run) == expected
                shutil.rmtree(run)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                taken, said = steps(run), logged(run)
                lost += max(0, said - taken)
                where[f"{taken} steps"] += 1
                print(f"kill {kills}: {taken} steps in the journal, {said} logged", file=sys.stderr, flush=True)
                if parsed.name:
                    found = {"kills": kills, "resumed": resumed, "equal": equal, "lost_steps": lost, "ended": ended}
                    save(
                        parsed.name,
                        found | {"model": Path(parsed.model).name, "steps": parsed.steps, "flags": more, "killed_at": dict(where)},
                    )
        going = (run / "journal.zgj").exists() and not (run / "result.json").exists()
        resumed += going
        if (tune("--resume", str(run)) if going else tune("--out", str(run), *flags)).wait():
            raise SystemExit("the last run failed")
        ended += 1
        equal &= digest(run) == expected
    found = {"kills": kills, "resumed": resumed, "equal": equal, "lost_steps": lost, "ended": ended}
    print(json.dumps(found))


def size(run: Path) -> int:
    """Bytes of a run's journal."""
    path = run / "journal.zgj"
    return path.stat().st_size if path.exists() else 0


def recorded(process: subprocess.Popen[bytes], run: Path, before: int) -> None:
    """Wait until a run's journal is longer than it was, or the run has ended."""
    while process.poll() is None and size(run) <= before:
        time.sleep(0.01)


def tune(*flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zerograd", "tune", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr if "--out" in flags else None)


def rows(folder: Path) -> Path:
    """Sixty film reviews, so that loading and evaluating take no more time than steps."""
    from zerograd.text.data import splits

    path = folder / "reviews.jsonl"
    with path.open("w") as file:
        for example in splits.load("sentiment-movies").train[:60]:
            file.write(json.dumps({"text": example.row["text"], "label": ["bad", "good"][example.label]}) + "\n")
    return path


def prompts(folder: Path) -> Path:
    """Thirty prompts of the built-in reward json."""
    from zerograd.rewards.builtin import BUILT_IN

    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in BUILT_IN["json"].rows()["train"][:30]))
    return path


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def steps(run: Path) -> int:
    """Steps in a journal; 0 where there is none."""
    path = run / "journal.zgj"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(isinstance(record, (Step, Skip)) for record in Reader(file, path.stat().st_size))


def logged(run: Path) -> int:
    """The last step that the log tells of."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = 0
    for line in lines:
        try:
            found = max(found, json.loads(line)["step"])
        except ValueError:
            continue  # half a line
    return found


if __name__ == "__main__":
    main()
