"""What there is to know of a task's rows before anything is trained on them."""

from __future__ import annotations

from collections import Counter

from zerograd.machine.format import percent
from zerograd.text.scoring import Scorer


def data_summary(scorer: Scorer) -> list[str]:
    """Lines on a task: how many rows, how its labels are spread, how long its rows are, and what was found wrong in them."""
    task, encoder = scorer.task, scorer.encoder
    lines = [f"{task.name}: {len(task.train):,} rows to train on, {len(task.dev):,} to choose on, {len(task.test):,} to report on"]
    lines += task.notes
    if task.options:
        counts = Counter(e.label for e in task.train)
        shares = [f"{option.strip()} {counts[i]:,}" for i, option in enumerate(task.options)]
        lines.append(f"labels of the training rows: {', '.join(shares)}")
        absent = [option.strip() for i, option in enumerate(task.options) if not counts[i]]
        if absent:
            lines.append(f"no training row is {absent[0]}, so that it cannot be learnt")
        common = max(range(len(task.options)), key=lambda i: counts[i])
        share = sum(e.label == common for e in task.test) / len(task.test)
        lines.append(f"always answering {task.options[common].strip()} is right on {percent(share)} of the test rows")
    lengths = sorted(scorer.length(example) for example in task.train)
    lines.append(f"rows have {lengths[len(lengths) // 2]:,} tokens in the middle, {lengths[-1]:,} at most")
    cut = sum(length >= encoder.room for length in lengths)
    if cut:
        lines.append(f"{cut:,} training rows reach {encoder.room} tokens and lose an end; --max-tokens sets the limit")
    short = sum(map(encoder.loses, task.train))
    if short:
        lines.append(
            f"{short:,} answers have more than {encoder.most} tokens and lose their end; --max-tokens sets twice the limit"
        )
    return lines
