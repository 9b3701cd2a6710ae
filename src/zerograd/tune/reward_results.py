"""The results of a run on rewards: each function's rewards and the share of right answers before and after, lengths and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from zerograd.rewards.builtin import names_topic
from zerograd.rewards.task import built_in
from zerograd.text import intervals
from zerograd.text.data.files import Row
from zerograd.text.evaluation import Answers
from zerograd.tune.setup import Setup
from zerograd.tune.state import LoopState


def on_rewards(setup: Setup, before: Answers, after: Answers, state: LoopState) -> dict[str, Any]:
    """The numbers by name.

    rewards: of each function its means before and after, and the interval of the gain. success: the share of the test prompts whose
    answers are what the built-in reward asks for, and names_topic: that name the topic of its prompts; missing without one.
    generations, generated_tokens: of training alone.
    """
    examples = setup.task.test
    result: dict[str, Any] = {
        "reward_before": -before.loss,
        "reward_after": -after.loss,
        "rewards": {name: _compared(before.rewards[name], after.rewards[name]) for name in after.rewards},
        "tokens": _compared(*([float(count) for count in answers.tokens] for answers in (before, after))),
        "test_prompts": len(examples),
        "generations": int(setup.optimizer.forwards * min(setup.settings.batch_size, len(setup.task.train))),
        "generated_tokens": sum(int(row.get("tokens", 0)) for row in state.history),
    }
    for name, holds in _asked(setup).items():
        held = ([float(holds(text, dict(e.row))) for text, e in zip(a.texts, examples, strict=True)] for a in (before, after))
        share = _compared(*held)
        result |= {f"{name}_before": share["before"], f"{name}_after": share["after"], f"ci_{name}": share["ci_gain"]}
    return result


def _asked(setup: Setup) -> dict[str, Callable[[str, Row], bool]]:
    """What a built-in reward with prompts asks of an answer to a row, by name."""
    of = built_in(setup.settings.reward)
    if of is None:
        return {}
    topical = all("topic" in e.row and "answer" not in e.row for e in setup.task.test)  # a right answer need not name it
    names = {"names_topic": lambda text, row: names_topic(text, str(row["topic"]))} if topical else {}
    return ({"success": of.is_right} if of.is_right is not None else {}) | names


def _compared(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """The means before and after, and the interval of the paired gain, of the rows that have a number both times."""
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if not math.isnan(one) and not math.isnan(other)]
    if not pairs:
        return {"before": None, "after": None, "ci_gain": None, "rows": 0}
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    return {
        "before": sum(first) / len(first),
        "after": sum(second) / len(second),
        "ci_gain": intervals.paired(first, second),
        "rows": len(pairs),
    }
