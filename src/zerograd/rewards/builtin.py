"""Built-in rewards with their prompts: what to ask, what counts as right, and how near an answer is to it.

A strict reward is flat at first: nothing is right, so nothing can be told apart. Each built-in one therefore is the mean of whether
an answer is right and of a shaped part that says how near it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from zerograd.rewards.functions import Reward
from zerograd.text.data.files import Row
from zerograd.text.data.order import shuffled
from zerograd.text.metrics import normalised

TEST, DEV = 256, 40
"""Topics that test and dev prompts are about, and no training prompt; at most six and one in ten of them."""

SPLIT_SEED, SPLIT_EPOCH = 0, 0
"""What decides which topics are whose: not the run's seed, so that all runs are judged alike."""

FEWEST, MOST = 4, 15
"""Words of a short sentence."""


@dataclass(frozen=True)
class BuiltIn:
    """A reward with its prompts.

    score: of an answer's text and its row, in [0, 1] or for `sentiment` [-1, 1]. is_right: whether an answer is what was asked for;
    None where there is only more and less. rows: of prompts, by split. new_tokens: that an answer needs. chat: prompts are a user's
    turn; otherwise the answer continues them.
    """

    name: str
    score: Callable[[str, Row], float]
    is_right: Callable[[str, Row], bool] | None
    rows: Callable[[], dict[str, list[Row]]]
    new_tokens: int
    chat: bool = True

    @property
    def reward(self) -> Reward:
        """The reward as a function of TRL's signature."""

        def call(completions: Sequence[Any], **columns: Any) -> list[float]:
            return [
                self.score(text_of(answer), row) for answer, row in zip(completions, _rows(columns, len(completions)), strict=True)
            ]

        call.__name__ = self.name
        return Reward(self.name, call)


def text_of(completion: Any) -> str:
    """The text of an answer: itself, or the content of its one message."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def names_topic(text: str, topic: str) -> bool:
    """Whether a text has a topic's last word, in the singular or plural: `oak trees` in "An oak tree is ..."."""
    word = topic.lower().split()[-1]
    stem = (
        word[:-3] if word.endswith("ies") else word[:-2] if word.endswith(("ses", "xes", "ches", "oes")) else word.removesuffix("s")
    )
    return stem in text.lower()


def _beside(near: float, text: str, row: Row) -> float:
    """The shaped part: how near an answer is, and whether it names the topic, without which a form is soon filled with nothing."""
    return (near + names_topic(text, str(row["topic"]))) / 2 if "topic" in row else near


# Brief: one sentence of 4 to 15 words


def brief_is_right(text: str, row: Row) -> bool:
    words, text = len(text.split()), text.strip()
    return FEWEST <= words <= MOST and _sentences(text) == 1


def brief_score(text: str, row: Row) -> float:
    words = len(text.split())
    length = words / FEWEST if words < FEWEST else min(1.0, MOST / words)
    shape = 1.0 if _sentences(text.strip()) == 1 else 0.5
    return 0.5 * brief_is_right(text, row) + 0.5 * _beside(length * shape, text, row)


def _sentences(text: str) -> int:
    """Sentences of a text that ends as one does; 0 for one that is cut off."""
    return len(re.findall(r"[.!?](?=\s|$)", text)) if text[-1:] in (".", "!", "?") else 0


# JSON: an object with a string `answer`, and nothing around it


def json_is_right(text: str, row: Row) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and isinstance(value.get("answer"), str) and bool(value["answer"].strip())


def json_score(text: str, row: Row) -> float:
    bare = text.strip()
    inside = re.search(r"\{.*\}", text, re.DOTALL)
    near = (
        *(sign in bare for sign in ("{", "}", '"answer"', '"answer": "')),  # anywhere: a first answer may have none of them
        *(bare.startswith("{"), bare.endswith("}")),
        inside is not None and json_is_right(inside[0], row),
    )
    return 0.5 * json_is_right(text, row) + 0.5 * _beside(sum(near) / len(near), text, row)


# Contains: the answer has the word, or all words, of the column `contains`


def _wanted(row: Row) -> list[str]:
    wanted = row["contains"]
    return [str(word).lower() for word in (wanted if isinstance(wanted, (list, tuple)) else [wanted])]


def contains_score(text: str, row: Row) -> float:
    wanted = _wanted(row)
    return sum(re.search(rf"\b{re.escape(word)}\b", text.lower()) is not None for word in wanted) / len(wanted)


def contains_is_right(text: str, row: Row) -> bool:
    return contains_score(text, row) == 1


# Exact: the answer is that of the column `answer`


def exact_is_right(text: str, row: Row) -> bool:
    return normalised(text) == normalised(str(row["answer"]))


def exact_score(text: str, row: Row) -> float:
    has_it = normalised(str(row["answer"])) in normalised(text).split()
    return 0.5 * exact_is_right(text, row) + 0.5 * has_it / max(1, len(text.split()) / 4)


# Sentiment: VADER's score of the answer


@cache
def _analyser() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ModuleNotFoundError("reward sentiment needs the package vaderSentiment; pip install 'zerograd[rewards]'") from None
    return SentimentIntensityAnalyzer()


def sentiment_score(text: str, row: Row) -> float:
    """VADER's score; a positive one times the share of different words, since a kind word said over and over has the highest."""
    score, words = float(_analyser().polarity_scores(text)["compound"]), text.lower().split()
    return score * len(set(words)) / len(words) if score > 0 else score


# Prompts


def _topics() -> list[str]:
    return resources.files("zerograd.rewards").joinpath("topics.txt").read_text(encoding="utf-8").split("\n")[:-1]


def _split(things: Sequence[Any], asked: Callable[[Any, int], Iterator[Row]]) -> dict[str, list[Row]]:
    """Rows of each split: one of a thing for test and dev, all of it for training."""
    order = [things[i] for i in shuffled(len(things), SPLIT_SEED, SPLIT_EPOCH)]
    test, dev = min(TEST, len(order) * 6 // 10 + 4), min(DEV, len(order) // 10)
    parts = {"test": order[:test], "dev": order[test : test + dev], "train": order[test + dev :]}
    rows = {split: [list(asked(thing, number)) for number, thing in enumerate(part)] for split, part in parts.items()}
    return {split: [row for some in found for row in (some if split == "train" else some[:1])] for split, found in rows.items()}


def _about(templates: Sequence[str]) -> Callable[[], dict[str, list[Row]]]:
    def asked(topic: str, number: int) -> Iterator[Row]:
        for i in range(len(templates)):
            template = templates[(number + i) % len(templates)]
            yield {"prompt": template.format(topic=topic), "topic": topic, "contains": topic.split()[-1]}

    return lambda: _split(_topics(), asked)


def _sums() -> dict[str, list[Row]]:
    pairs = [(a, b) for a in range(10) for b in range(10)]

    def asked(pair: tuple[int, int], number: int) -> Iterator[Row]:
        a, b = pair
        yield {"prompt": f"What is {a} + {b}? Answer with the number alone.", "answer": str(a + b), "topic": f"{a} + {b}"}

    return _split(pairs, asked)


BRIEF = ("Describe {topic} in one short sentence.", "In one short sentence, tell me about {topic}.")
JSON = (
    'Give me a JSON object with the key "answer" that says what {topic} are in a few words.',
    'Give me a one-line JSON object {{"answer": "..."}} that says what {topic} are. Only JSON, no code block.',
)
CONTAINS = ("Write one sentence that has the word {topic} in it.",)
SENTIMENT = ("I have always had mixed feelings about {topic}, but today", "My friend told me about {topic}, and")
BUILT_IN = {
    one.name: one
    for one in (
        BuiltIn("brief", brief_score, brief_is_right, _about(BRIEF), 32),
        BuiltIn("json", json_score, json_is_right, _about(JSON), 40),
        BuiltIn("contains", contains_score, contains_is_right, _about(CONTAINS), 32),
        BuiltIn("exact", exact_score, exact_is_right, _sums, 12),
        BuiltIn("sentiment", sentiment_score, None, _about(SENTIMENT), 20, chat=False),
    )
}
"""The built-in rewards, by name."""


def names_topics(completions: Sequence[Any], topic: Sequence[str], **columns: Any) -> list[float]:
    """1 for an answer that names its prompt's topic, else 0: a reward, and what `json` and `brief` must not lose."""
    return [float(names_topic(text_of(answer), one)) for answer, one in zip(completions, topic, strict=True)]


def _rows(columns: dict[str, Any], count: int) -> list[Row]:
    lists = {name: values for name, values in columns.items() if isinstance(values, list) and len(values) == count}
    return [{name: values[i] for name, values in lists.items()} for i in range(count)]
