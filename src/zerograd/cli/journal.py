"""zerograd journal: show, verify, compare or cut a run's journal."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from zerograd.cli import screen


def add(verbs: Any) -> None:
    parser = verbs.add_parser("journal", help="show, verify, compare or cut journals", description=__doc__)
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    show = acts.add_parser("show", help="show a run and its losses, or one step")
    show.add_argument("--step", metavar="N", type=int, default=None, help="show step N, counted from 0")
    verify = acts.add_parser("verify", help="check every byte; exit code 0 if intact, else 1 with the reason")
    diff = acts.add_parser("diff", help="find the first difference of two runs; exit code 0 if there is none, else 1")
    cut = acts.add_parser("cut", help="write the first steps of a journal as a new journal")
    for one in (show, verify, diff, cut):
        one.add_argument("journal", metavar="JOURNAL", help="a journal, or the folder of its run")
    diff.add_argument("other", metavar="OTHER", help="the other journal, or its run's folder")
    cut.add_argument("--at", metavar="STEP", type=int, required=True, help="the number of steps to write")
    cut.add_argument("--out", metavar="FILE", required=True, help="the new journal")
    for one, act in ((show, _show), (verify, _verify), (diff, _diff), (cut, _cut)):
        one.set_defaults(run=act)


def _show(parsed: argparse.Namespace) -> int:
    from zerograd.runs.journals import find_journal, read_journal
    from zerograd.update import Skip

    journal = read_journal(find_journal(parsed.journal))
    if parsed.step is not None:
        if not 0 <= parsed.step < len(journal.steps):
            raise ValueError(f"step is {parsed.step}; the journal has steps 0 .. {len(journal.steps) - 1}")
        step = journal.steps[parsed.step]
        if isinstance(step, Skip):
            print(f"step {step.number}: loss {step.loss:.6g}, not finite; the step was skipped")
            return 0
        print(f"step {step.number}: loss {step.loss:.6g}")
        for group, (lr, radius) in enumerate(zip(step.lrs.tolist(), step.radii.tolist(), strict=True)):
            decay = "" if step.decays is None else f", weights times {step.decays[group]:.9g}"
            name = f"group {group}: " if len(step.lrs) > 1 else ""
            print(f"{name}learning rate {lr:.6g}, eps {radius:.6g}{decay}")
        print(f"{len(step.coefficients)} coefficients: {' '.join(f'{c:.6g}' for c in step.coefficients.tolist())}")
        return 0
    header, base = journal.header, journal.header["base"]
    print(f"{journal.path}: {journal.path.stat().st_size:,} bytes, {len(journal.steps):,} steps of {header['method']}")
    print(f"base {base['model']}, identity {base['identity']}")
    values = sum(math.prod(row["shape"]) for row in header["tensors"])
    print(
        f"trains {len(header['tensors'])} tensors, {values:,} values, scheme {header['settings']['scheme']}, seed {header['seed']}"
    )
    if journal.torn:
        print(f"the last record is incomplete: {journal.torn} bytes of it are there")
    losses = [step.loss for step in journal.steps if math.isfinite(step.loss)]
    if losses:
        print(f"loss {screen.sparkline(losses)} {losses[0]:.4g} to {losses[-1]:.4g}, lowest {min(losses):.4g}")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from zerograd.journal import JournalDamaged
    from zerograd.runs.journals import find_journal, read_journal

    path = find_journal(parsed.journal)
    try:
        journal = read_journal(path)
    except JournalDamaged as error:
        print(f"{path}: {error}")
        return 1
    if journal.torn:
        print(
            f"{path}: the last record is incomplete, {journal.torn} bytes of it are there; "
            f"{len(journal.steps):,} complete steps before it"
        )
        return 1
    print(f"{path}: intact, {len(journal.steps):,} steps, {len(journal.records):,} records")
    return 0


def _diff(parsed: argparse.Namespace) -> int:
    from zerograd.runs.journals import find_journal, first_difference, read_journal

    first, second = (read_journal(find_journal(name)) for name in (parsed.journal, parsed.other))
    fields, number = first_difference(first, second)
    for name in fields:
        one, other = (json.dumps(journal.header.get(name)) for journal in (first, second))
        print(f"{name}: {_short(one)} and {_short(other)}")
    if number is None:
        print(f"all {len(first.steps):,} steps are the same")
    else:
        for journal in (first, second):
            outcome = f"loss {journal.steps[number].loss:.9g}" if number < len(journal.steps) else "has no such step"
            print(f"step {number}, {journal.path}: {outcome}")
    return 0 if number is None and not fields else 1


def _cut(parsed: argparse.Namespace) -> int:
    from zerograd.runs.journals import cut_journal, find_journal, read_journal

    size = cut_journal(read_journal(find_journal(parsed.journal)), parsed.at, Path(parsed.out))
    print(f"{parsed.out}: {parsed.at:,} steps, {size:,} bytes")
    return 0


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
