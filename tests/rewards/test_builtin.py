"""Built-in rewards: what counts as right, that being nearer scores more, and that test topics are never trained on."""

from __future__ import annotations

import pytest

from zerograd.rewards.builtin import BUILT_IN, names_topic, names_topics

RIGHT = {
    "brief": (
        ["Bees make good honey.", "An owl is a bird that hunts at night!"],
        ["Bees make good honey. They dance.", "Bees", "honey and honey and honey", "word " * 16 + "end."],
    ),
    "json": (
        ['{"answer": "Bees dance."}', ' {"answer": "x", "why": 1}\n'],
        ['```json\n{"answer": "x"}\n```', '{"answer": 3}', '{"answer": ""}', "Bees dance.", '["answer"]', '{"answer": "x"'],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right(name: str) -> None:
    of = BUILT_IN[name]
    right, wrong = RIGHT[name]
    assert of.is_right is not None
    assert all(of.is_right(text, {}) for text in right)
    assert not any(of.is_right(text, {}) for text in wrong)
    assert min(of.score(text, {}) for text in right) > max(of.score(text, {}) for text in wrong)
    assert all(0 <= of.score(text, {}) <= 1 for text in (*right, *wrong, ""))


def test_being_nearer_scores_more() -> None:
    json, brief = BUILT_IN["json"].score, BUILT_IN["brief"].score
    ladder = ["Bees dance.", 'Here is it: {"answer": "Bees dance."}', '{"answer": "Bees dance."']
    assert json(ladder[0], {}) < json(ladder[2], {}) <= json(ladder[1], {}) < json('{"answer": "Bees dance."}', {})
    assert brief("word " * 60 + ".", {}) < brief("word " * 30 + ".", {}) < brief("word " * 10 + ".", {})


def test_words_and_answers_of_columns() -> None:
    contains, exact = BUILT_IN["contains"], BUILT_IN["exact"]
    assert contains.score("The cat and the Dog.", {"contains": ["cat", "dog"]}) == 1
    assert contains.score("A category.", {"contains": "cat"}) == 0
    assert exact.is_right is not None
    assert exact.is_right(" 12. ", {"answer": "12"})
    assert not exact.is_right("It is 12", {"answer": 12})
    assert 0 < exact.score("It is 12", {"answer": 12}) < 1


def test_sentiment_is_vader_s() -> None:
    pytest.importorskip("vaderSentiment")
    score = BUILT_IN["sentiment"].score
    assert score("I love it, wonderful!", {}) > 0.5 > -0.5 > score("It is horrible and sad.", {})
    assert score("I love it. I love it. I love it.", {}) < 0.5 * score("I love it.", {}) + 0.2, "the same over and over"


@pytest.mark.parametrize(("name", "empty", "full"), [("json", '{"answer": "It is a thing."}', '{"answer": "Owls are birds."}'),
                                                     ("brief", "It is a nice thing.", "Owls are nice birds.")])  # fmt: skip
def test_a_form_that_is_filled_with_nothing_scores_less(name: str, empty: str, full: str) -> None:
    one, row = BUILT_IN[name], {"topic": "owls"}
    assert one.is_right is not None
    assert one.is_right(empty, row)
    assert one.is_right(full, row)
    assert one.score(full, row) == 1 > one.score(empty, row) > 0.5
    assert one.score(empty, {}) == 1, "without a topic the form alone counts"


def test_rewards_have_trl_s_signature() -> None:
    """Columns come as lists; conversations as lists of one message."""
    call = BUILT_IN["contains"].reward.call
    columns = {"prompts": ["a", "b"], "completion_ids": [[1], [2]], "contains": ["bee", "owl"], "trainer_state": None}
    assert call(completions=["a bee", "a bee"], **columns) == [1.0, 0.0]
    assert call(completions=[[{"role": "assistant", "content": "an owl"}]] * 2, **columns) == [0.0, 1.0]
    assert names_topics(completions=["Bees!", "no"], topic=["honey bees", "owls"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "topic"), [("An oak tree grows.", "oak trees"), ("A berry is red.", "strawberries"), ("The fox ran.", "foxes")]
)
def test_a_topic_is_named_in_the_singular_too(text: str, topic: str) -> None:
    assert names_topic(text, topic) == (topic != "strawberries")


@pytest.mark.parametrize("name", BUILT_IN)
def test_topics_of_the_test_are_never_trained_on(name: str) -> None:
    rows = BUILT_IN[name].rows()
    topics = {split: {row["topic"] for row in of_split} for split, of_split in rows.items()}
    assert not topics["train"] & topics["test"]
    assert not topics["dev"] & (topics["train"] | topics["test"])
    assert len(rows["test"]) == (256 if name != "exact" else 64)
    assert len({row["prompt"] for of_split in rows.values() for row in of_split}) == sum(map(len, rows.values()))
