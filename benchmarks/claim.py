"""What directions of each example's own on queries and keys reach in a part of MeZO's seconds, and AdamW on LoRA in that time too.

Each method's learning rate falls to the end of its own runs, so that each length is a study of its own; all are tuned on the dev
rows of one task, the default once left as it comes too, and meet on the same seeds and test rows. MeZO is tuned on all weights, as
published, and on the upper half; AdamW has the same seconds, and once so small a batch, checkpointed, that it takes no more memory
either.

    python benchmarks/claim.py run                 # about 3 CPU hours; stop it anywhere, and go on with the same line
    python benchmarks/claim.py run claim-half      # some of it; another process may run others at the same time
    python benchmarks/claim.py table
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from statistics import fmean

from record import RESULTS

from zerograd.bench import rows
from zerograd.bench.rows import Row
from zerograd.bench.runner import LEADERBOARD, Runner
from zerograd.bench.study import Search, Study
from zerograd.machine import environment
from zerograd.text import intervals as statistics

OUT = RESULTS / "claim"

TASKS = ("sentiment-movies", "sentiment-tweets")

SECONDS = {"half": 56, "fifth": 28}
"""What the default's runs of tweets take, which are the shorter ones."""

DEFAULT = {"per-example": {"lr": [1, 0.5, 1.5], "eps": [0.06, 0.03]}}
UNTUNED: dict[str, dict[str, list[float]]] = {"per-example": {"lr": [1]}}
MEZO = {"mezo": {"lr": [0.5, 1, 0.25, 2], "eps": [0.02, 0.05]}}
ADAMW = {"adamw": {"lr": [1, 0.5, 2, 0.25]}}
CHECKPOINTED = {"adamw": ADAMW["adamw"] | {"checkpointing": [True]}}


def study(
    name: str, grids: dict[str, dict[str, list[float]]], scheme: str, tried: int, rows_a_step: int = 16, **budget: int
) -> Study:
    """One of them. tried: evaluations of a run of its search that is not stopped."""
    return Study(
        name=name, methods=tuple(grids), tasks=TASKS, schemes=(scheme,), grids=grids, search=Search(100, TASKS[1], tried),
        rows={"train": 1000, "dev": 160, "test": 1000}, settings={"batch_size": rows_a_step, "threads": 1, "schedule": "linear"},
        **budget,
    )  # fmt: skip


STUDIES = {
    made.name: made
    for made in (
        study("claim-mezo-full", MEZO, "full", 240, evaluations=240),
        study("claim-mezo-upper", MEZO, "upper", 240, evaluations=240),
        study("claim-half", DEFAULT, "qk", 120, evaluations=120),
        study("claim-fifth", DEFAULT, "qk", 60, evaluations=60),
        study("claim-half-untuned", UNTUNED, "qk", 8, evaluations=120),  # of one setting: its search is short
        study("claim-fifth-untuned", UNTUNED, "qk", 8, evaluations=60),
        study("claim-48-untuned", UNTUNED, "qk", 8, evaluations=48),  # which takes a fifth; 60 took a quarter
        study("claim-half-lora", ADAMW, "lora", 100, seconds=SECONDS["half"]),
        study("claim-fifth-lora", ADAMW, "lora", 50, seconds=SECONDS["fifth"]),
        study("claim-half-lora-memory", CHECKPOINTED, "lora", 300, 4, seconds=SECONDS["half"]),
        study("claim-fifth-lora-memory", CHECKPOINTED, "lora", 150, 4, seconds=SECONDS["fifth"]),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run").add_argument("studies", nargs="*", default=list(STUDIES))
    verbs.add_parser("table")
    parsed = parser.parse_args()
    environment.prepare()
    if parsed.verb == "run":
        for name in parsed.studies:
            Runner(STUDIES[name], OUT, say=lambda line: print(line, flush=True)).run()
    else:
        found = rows.read(OUT / LEADERBOARD)
        print("\n".join(table(found)))


def table(found: Sequence[Row]) -> Iterator[str]:
    """Markdown: MeZO at its end, each part of its seconds against it, and what back-propagation reaches there."""
    yield "| | % right | s movies, tweets | peak MB | against MeZO, upper | of its s | against MeZO, full | of its s |"
    yield "|---|---|---|---|---|---|---|---|"
    references = [_rows(found, name) for name in ("claim-mezo-upper", "claim-mezo-full")]
    for name, made in STUDIES.items():
        mine = _rows(found, name)
        if {row["task"] for row in mine} != set(TASKS):
            continue
        seconds = ", ".join(f"{fmean(_end(row)[2] for row in mine if row['task'] == task):.0f}" for task in TASKS)
        right, peak = fmean(_end(row)[0] for row in mine), max(row["peak_bytes"] for row in mine)
        held = [part for reference in references for part in _against(mine, reference)]
        label = f"{name.removeprefix('claim-')}: {made.methods[0]}, {made.schemes[0]}, batches of {made.settings['batch_size']}"
        yield f"| {label} | {100 * right:.1f} | {seconds} | {peak / 1e6:,.0f} | {' | '.join(held)} |"


def _rows(found: Sequence[Row], name: str) -> list[Row]:
    return sorted((row for row in found if row["study"] == name), key=lambda row: (row["seed"], row["task"]))


def _end(row: Row) -> tuple[float, float, float, Sequence[int]]:
    end = rows.at_budget(row, next(iter(row["budget"])))
    assert end is not None
    return end


def _against(mine: list[Row], theirs: list[Row]) -> tuple[str, str]:
    """(the gain in points with its interval, paired over seeds and test rows; the seconds as a share of theirs)."""
    places = [(row["seed"], row["task"], row["test"]) for row in mine]
    if mine == theirs or places != [(row["seed"], row["task"], row["test"]) for row in theirs]:
        return "", ""
    differences: dict[int, list[int]] = {}
    widths = []
    for row, other in zip(mine, theirs, strict=True):
        pairs = list(zip(_end(row)[3], _end(other)[3], strict=True))
        differences.setdefault(row["seed"], []).extend(a - b for a, b in pairs)
        widths.append(len(pairs))
    low, high = statistics.crossed_bootstrap(list(differences.values()), widths[: len(TASKS)])
    gain = fmean(_end(row)[0] - _end(other)[0] for row, other in zip(mine, theirs, strict=True))
    share = sum(_end(row)[2] for row in mine) / sum(_end(row)[2] for row in theirs)
    return f"{100 * gain:+.1f} ({100 * low:+.1f}, {100 * high:+.1f})", f"{share:.2f}"


if __name__ == "__main__":
    main()
