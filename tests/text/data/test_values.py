"""Values that are equal are one label, and what is empty is empty in every format."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

from tests.text.data.files import write
from zerograd.text.data import columns, files
from zerograd.text.data.sources import Source
from zerograd.text.data.splits import with_rows
from zerograd.text.data.values import is_empty, key

EQUAL = [
    [1, 1.0, "1", " 1 ", "1.0", "1.00", "1e0", Decimal(1), Decimal("1.0")],
    [True, "true", "True", "TRUE"],
    [False, "false", "False"],
    [0.5, "0.5", ".5e0"[:0] + "0.50", Decimal("0.5")],
    [-3, -3.0, "-3", "-3.0"],
    [0, 0.0, -0.0, "0", "-0"],
    [10**20, "100000000000000000000", 1e20],
    [1e-7, "1e-7", "0.0000001"],
    ["007", " 007"],
    ["7", 7],
    ["yes", "yes "],
    ["Yes"],
    ["1,5"],
    ["nan"],
    [datetime.date(2024, 1, 2), "2024-01-02"],
]


def test_equal_values_share_a_key_and_others_do_not():
    keys = [{key(value) for value in values} for values in EQUAL]
    assert all(len(one) == 1 for one in keys), keys
    assert len(set.union(*keys)) == len(EQUAL)


@pytest.mark.parametrize("value", [None, float("nan"), Decimal("nan"), "", " \t"])
def test_nothing_is_empty(value):
    assert is_empty(value)
    assert not is_empty(0)
    assert not is_empty(value is None)


@pytest.mark.parametrize("first", [".jsonl", ".csv", ".tsv", ".parquet", ".json"])
@pytest.mark.parametrize(("second", "kind"), [(".parquet", float), (".csv", str), (".jsonl", int), (".csv", float)])
def test_labels_of_two_formats_are_the_same_labels(tmp_path, first, second, kind):
    one = write(tmp_path / f"a{first}", [{"text": f"a {i}", "label": i % 3} for i in range(30)])
    two = write(tmp_path / f"b{second}", [{"text": f"b {i}", "label": kind(i % 3)} for i in range(30)])
    sources = [Source(str(one)), Source(str(two))]
    rows = [row for source in sources for row in source.read({})["train"]]
    spec = columns.from_rows("mine", rows)
    assert spec.options == (" 0", " 1", " 2")
    task = with_rows(spec, sources)
    assert {(e.row["text"][-1], e.label) for e in task.train if int(e.row["text"][2:]) < 3} <= {("0", 0), ("1", 1), ("2", 2)}


def test_true_and_1_are_two_labels(tmp_path):
    rows = [{"text": f"a {i}", "label": [True, 1, False, 0][i % 4]} for i in range(8)]
    spec = columns.from_rows("mine", rows)
    assert len(spec.options) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": NaN, "label": 1}\n{"text": "y", "label": NaN}\n'),
        ("a.json", '[{"text": "x", "label": 1}, {"text": NaN, "label": 1}, {"text": "y", "label": NaN}]'),
        ("a.csv", "text,label\nx,1\n,1\ny,NaN\n"),
        ("a.tsv", "text\tlabel\nx\t1.0\n\t1\ny\tnan\n"),
    ],
)
def test_nan_is_null_in_every_format(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    rows = files.rows(path)
    assert [is_empty(row["text"]) for row in rows] == [False, True, False]
    assert [is_empty(row["label"]) for row in rows] == [False, False, True]
    with pytest.raises(ValueError, match=r"row 3: label is empty; fill it, or leave the row out"):
        columns.from_rows("mine", rows)


def test_nan_of_parquet_is_null_within_lists_and_objects_too(tmp_path):
    nan = float("nan")
    path = write(tmp_path / "a.parquet", [{"text": "x", "score": nan, "parts": [nan, 1.0], "more": {"a": nan}}])
    assert files.rows(path) == [{"text": "x", "score": None, "parts": [None, 1.0], "more": {"a": None}}]


def test_nan_is_a_word_where_the_column_has_words(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nbread,nan\nrice,gohan\n")
    assert [row["label"] for row in files.rows(path)] == ["nan", "gohan"]
