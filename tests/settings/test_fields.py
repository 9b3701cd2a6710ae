"""Dataclasses of settings are checked by their annotations, and an error names the field, its value and what it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from zerograd.settings.fields import check_fields, from_mapping, kinds_of, require_at_least, setting


@dataclass(frozen=True)
class Inner:
    depth: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "inner.")


@dataclass(frozen=True)
class Fields:
    name: str
    count: int = 1
    share: float = 0.5
    chat: bool = False
    rate: float | Literal["auto"] | None = None
    kind: str = setting("a", "which kind", ("a", "b"))
    words: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    labels: tuple[Any, ...] = ()
    options: tuple[str, ...] | Mapping[str, str] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": 3}, "name is 3; it must be a text"),
        ({"count": 1.5}, "count is 1.5; it must be a whole number"),
        ({"count": True}, "count is True; it must be a whole number"),
        ({"share": "half"}, "share is 'half'; it must be a number"),
        ({"share": None}, "share is None; it must be a number"),
        ({"chat": 1}, "chat is 1; it must be true or false"),
        ({"rate": "best"}, "rate is 'best'; it must be a number or auto"),
        ({"kind": "c"}, "kind is 'c'; choose one of a, b"),
        ({"words": "one"}, "words is 'one'; it must be a list of texts"),
        ({"words": ["one", 2]}, "words is ['one', 2]; it must be a list of texts"),
        ({"seeds": [0, False]}, "seeds is [0, False]; it must be a list of whole numbers"),
        ({"labels": {}}, "labels is {}; it must be a list"),
        ({"options": "yes"}, "options is 'yes'; it must be a list of texts or names and values"),
        ({"rows": [1]}, "rows is [1]; it must be names and values"),
        ({"inner": 1}, "inner is 1; it must be names and values"),
        ({"size": 1}, "the file has a field 'size'; the fields are name, count"),
    ],
)
def test_an_error_names_the_field_its_value_and_what_it_must_be(given, says):
    with pytest.raises(ValueError, match=r".") as raised:
        from_mapping(Fields, {"name": "x"} | given, "the file")
    assert str(raised.value).startswith(says)


def test_values_of_their_kind_are_taken_and_lists_become_tuples():
    given = {"name": "x", "share": 1, "rate": "auto", "words": ["a"], "seeds": [1, 2], "options": {"each": "a"}, "rows": {"dev": 3}}
    made = from_mapping(Fields, given, "the file")
    assert (made.share, made.rate, made.words, made.seeds, made.options) == (1, "auto", ("a",), (1, 2), {"each": "a"})
    assert from_mapping(Fields, {"name": "x", "rate": 0.1, "options": ["a"]}, "the file").options == ("a",)


def test_a_field_that_is_needed_and_one_of_an_inner_dataclass_are_named():
    with pytest.raises(ValueError, match="the file has no name; give a text"):
        from_mapping(Fields, {"count": 2}, "the file")
    with pytest.raises(ValueError, match=r"inner\.depth is 'deep'; it must be a whole number"):
        from_mapping(Inner, {"depth": "deep"}, "the file")


def test_numbers_are_finite_and_not_too_small():
    require_at_least("count", 1, 1)
    for value in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"count is {value}; it must be a number of at least 1"):
            require_at_least("count", value, 1)


def test_the_kinds_of_a_union_are_told_apart():
    assert kinds_of(Fields)["rate"] == (float, Literal["auto"], type(None))
    assert kinds_of(Fields)["count"] == (int,)
