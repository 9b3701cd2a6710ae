"""What a run on rewards has: its functions, and a task whose prompts have no right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerograd.rewards import functions
from zerograd.rewards.builtin import BUILT_IN, BuiltIn, names_topics
from zerograd.rewards.evaluator import Prompt
from zerograd.rewards.functions import Reward, Rewards, is_conversation
from zerograd.settings.user_code import load_user_object
from zerograd.text.data import splits
from zerograd.text.data.sources import Source
from zerograd.text.data.tasks import Example, Task, TaskSpec
from zerograd.text.scoring import Scorer

NAMES_TOPIC = "names-topic"
"""A reward: whether an answer names its prompt's topic."""

COLUMN = "prompt"
"""The column of prompts, as TRL names it."""


def rewards_of(names: Sequence[str], weights: Sequence[float] = ()) -> Rewards:
    """Reward functions by name: a built-in one, `file.py:function`, `module:function`, or a sequence-classification model.

    Names after a comma are of the same file or module.
    Raises ValueError for a name that is none, and for wrong weights.
    """
    return Rewards([_named(name) for name in in_full(names)], weights)


def in_full(names: Sequence[str]) -> list[str]:
    """Names with their file or module: `file.py:one,other` is two."""
    found: list[str] = []
    for given in names:
        where, colon, rest = given.rpartition(":")
        for name in rest.split(","):
            if name.strip():
                found.append(f"{where}{colon}{name.strip()}")
    return found


def is_built_in(names: Sequence[str]) -> bool:
    """Whether all names are of rewards that come with the package."""
    return all(name in BUILT_IN or name == NAMES_TOPIC for name in in_full(names))


def built_in(names: Sequence[str]) -> BuiltIn | None:
    """The first built-in reward with prompts among names."""
    return next((BUILT_IN[name] for name in in_full(names) if name in BUILT_IN), None)


def task_of_rewards(names: Sequence[str], sources: Sequence[Source], chat: bool, dev: str = "", test: str = "") -> Task:
    """The task of a run on rewards: rows of the sources, which have a column `prompt`, or those of the first built-in reward.

    chat: put prompts that are texts into the model's chat template.
    Raises ValueError or FileNotFoundError.
    """
    if sources:
        rows = [row for source in sources for row in source.read({})["train"]]
        missing = next((number for number, row in enumerate(rows, 1) if COLUMN not in row), None)
        if missing is not None:
            columns = ", ".join(rows[missing - 1]) or "none"
            raise ValueError(
                f"data {sources[0].name}: row {missing} has no column {COLUMN!r}, which rewards need; it has {columns}"
            )
        spec = _spec(Path(sources[0].name).stem, is_conversation(rows[0][COLUMN]), chat)
        return splits.with_rows(spec, sources, dev, test)
    of = built_in(names)
    if of is None:
        raise ValueError(f"reward is {' '.join(names)}, which brings no prompts; give --data with a column {COLUMN!r}")
    return splits.of_rows(_spec(of.name, False, chat or of.chat), of.rows())


def prompts_of(scorer: Scorer, examples: Sequence[Example], new_tokens: int) -> list[Prompt]:
    """Examples as prompts of tokens. Raises ValueError for a prompt that leaves no room for an answer of new_tokens."""
    found = []
    for example in examples:
        ids = scorer.encoder.prompt_ids(example)
        room = scorer.encoder.max_tokens - new_tokens
        if len(ids) > room:
            problem = f"{example.where or 'a prompt'} has {len(ids)} tokens, and {room} are left beside an answer of {new_tokens}"
            raise ValueError(f"{problem}; shorten it, lower --new-tokens, or raise --max-tokens")
        row: dict[str, Any] = dict(example.row)
        if scorer.task.spec.messages:
            row[COLUMN] = scorer.task.messages(example.row)
        found.append(Prompt(row, ids))
    return found


def _spec(name: str, talks: bool, chat: bool) -> TaskSpec:
    spec = TaskSpec(name, prompt=f"{{{{ {COLUMN} }}}}", open=True)
    return replace(spec, prompt="", messages=COLUMN) if talks else replace(spec, chat=chat)


def _named(name: str) -> Reward:
    if name in BUILT_IN:
        return BUILT_IN[name].reward
    if name == NAMES_TOPIC:
        return Reward(NAMES_TOPIC, names_topics)
    if ":" in name:
        call = load_user_object(name, "reward")
        if not callable(call):
            raise ValueError(f"reward {name!r} is a {type(call).__name__}; name a function")
        return Reward(name.rpartition(":")[2], call)
    return functions.model_named(name)
