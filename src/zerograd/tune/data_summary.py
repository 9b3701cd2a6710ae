"""A summary of a task's rows, printed before training."""

from __future__ import annotations

from collections import Counter

from zerograd.machine.format import percent
from zerograd.text.scoring import Scorer

SHOWN_CHARACTERS = 400
"""Characters of a text that is shown; a longer one loses its middle."""


def data_summary(scorer: Scorer) -> list[str]:
    """Lines about a task: its numbers of rows, duplicates and leaks, label counts, and lengths in tokens."""
    task, encoder = scorer.task, scorer.encoder
    lines = [f"{task.name}: train {len(task.train):,}, dev {len(task.dev):,}, test {len(task.test):,}"]
    lines += task.notes
    prompt, answer = scorer.seen(task.train[0])
    row = f"the first training row, as the model sees it: {_middle_out(prompt)!r}"
    lines.append(row if task.spec.open else f"{row}, and its answer: {_middle_out(answer)!r}")
    if task.options:
        counts = Counter(e.label for e in task.train)
        counts_in_words = [f"{option.strip()} {counts[i]:,}" for i, option in enumerate(task.options)]
        lines.append(f"labels of the training rows: {', '.join(counts_in_words)}")
        absent = [option.strip() for i, option in enumerate(task.options) if not counts[i]]
        if absent:
            lines.append(f"no training row has the label {absent[0]}, so the model cannot learn it")
        common = max(range(len(task.options)), key=lambda i: counts[i])
        share = sum(e.label == common for e in task.test) / len(task.test)
        lines.append(f"always answering {task.options[common].strip()} is right on {percent(share)} of the test rows")
    lengths = sorted(scorer.length(example) for example in task.train)
    lines.append(f"{lengths[len(lengths) // 2]:,} tokens per row (median), {lengths[-1]:,} at most")
    at_limit = sum(length >= encoder.max_tokens for length in lengths)
    if at_limit:
        lines.append(f"{at_limit:,} training rows reach {encoder.max_tokens} tokens and are truncated; --max-tokens sets the limit")
    truncated = sum(map(encoder.is_truncated, task.train))
    if truncated:
        lines.append(
            f"{truncated:,} answers have more than {encoder.max_answer_tokens} tokens and are truncated; "
            "the limit is half of --max-tokens"
        )
    return lines


def _middle_out(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} ... {text[-half:]}"
