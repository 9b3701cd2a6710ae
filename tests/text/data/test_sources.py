"""Rows of files: every format, and one clear line for what is wrong in them."""

from __future__ import annotations

import pytest

from tests.text.data.files import write
from tests.tiers import tiers
from zerograd.text.data import columns, splits
from zerograd.text.data import files as formats
from zerograd.text.data import sources as data
from zerograd.text.data.sources import Source
from zerograd.text.data.tasks import Task

ROWS = [{"text": f"a text, number {i}", "label": ["bad", "good"][i % 2]} for i in range(40)]


@tiers("ending", [ending for ending in formats.FORMATS if ending != ".parquet"], [".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    assert formats.rows(write(tmp_path / f"a{ending}", ROWS)) == ROWS


def test_rows_of_a_csv_end_where_lines_do(tmp_path):
    """Not at characters that Python takes for the end of a line."""
    path = tmp_path / "a.csv"
    texts = ["one\u2028line", "an\x85other", "form\x0cfeed", "plain"]
    path.write_text("text,label\r\n" + "".join(f"{text},1\r\n" for text in texts), encoding="utf-8", newline="")
    assert [row["text"] for row in data.read(str(path))["train"]] == texts


def test_a_split_is_read_as_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("train", "test"):
        write(tmp_path / "folder" / f"{name}.csv", [{"text": f"{name} {i}", "label": i % 2} for i in range(3)])
    folder = str(tmp_path / "folder")
    assert [row["text"] for row in data.split(folder, "test")] == ["test 0", "test 1", "test 2"]
    assert len(data.split(f"{folder}/train.csv", "dev")) == 3
    with pytest.raises(ValueError, match="has train and test, and no dev; name the file"):
        data.split(folder, "dev")


def test_labels_that_two_files_spell_differently_are_one(tmp_path):
    rows = [{"text": f"a {i}", "label": label} for i, label in enumerate(["0", 0, "1", 1, "1 "])]
    spec = columns.from_rows("d", rows)
    assert spec.options == (" 0", " 1")
    assert [e.label for e in Task(spec).read(rows, "d")] == [0, 0, 1, 1, 1]


def test_csv_keeps_quotes_line_breaks_and_a_byte_order_mark_out_of_the_way(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\n"one, ""two""\nthree",x\n\nfour,y\n')
    assert formats.rows(path) == [{"text": 'one, "two"\nthree', "label": "x"}, {"text": "four", "label": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b"[1, 2]\n", "line 1 is a list; it must be an object of columns"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("a.csv", b"text,label\na,b,c\n", "line 2 has 3 columns, the header has 2"),
        ("a.csv", b"text,text\na,b\n", "two columns are named 'text'"),
        ("a.csv", b'text,label\n"a,b\n', "is not CSV"),
        ("a.json", b'{"text": "a"}', "is a dict; it must be a list of objects"),
        ("a.json", b"{", "line 1 is not JSON"),
        ("a.parquet", b"nonsense", "is not Parquet"),
        ("a.xlsx", b"x", "the ending is '.xlsx'; it must be one of .jsonl"),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_the_mend(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r".") as raised:
        formats.rows(path)
    assert str(path) in str(raised.value)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_has_the_splits_that_its_files_are_called(tmp_path):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.jsonl", ROWS)
    assert list(data.read(str(tmp_path))) == ["train", "dev"]
    assert list(data.read(str(tmp_path), {"train": "train", "test": "validation"})) == ["train", "test"]
    assert list(data.read(str(tmp_path), {"train": "train", "test": "tests"})) == ["train", "dev"]


def test_what_is_not_there_is_refused_without_asking_a_hub():
    for name in ("nowhere.csv", "./some", "/a/b"):
        with pytest.raises(FileNotFoundError, match="is not there: give a file"):
            data.read(name)


@pytest.mark.parametrize("given", ["a.csv=0", "a.csv=-1", "a.csv=x", "a.csv=inf", "a.csv="])
def test_a_weight_is_a_number_above_zero(given):
    with pytest.raises(ValueError, match="give a number above 0"):
        Source.parse(given)
    assert Source.parse("a.csv=2.5") == Source("a.csv", 2.5)
    assert Source.parse("a.csv") == Source("a.csv", 1.0)


# Tasks from columns.


def test_a_text_and_a_label_make_a_classification_with_the_labels_as_options():
    spec = columns.from_rows("mine", ROWS)
    assert (spec.prompt, spec.options, spec.labels) == ("{{ text }}\nLabel:", (" bad", " good"), ("bad", "good"))
    named = columns.from_rows("mine", [{"Review Body": "x", "star_rating": i} for i in range(3)], "Review Body", "star_rating")
    assert named.prompt == "{{ row['Review Body'] }}\nStar rating:"
    assert named.options == (" 0", " 1", " 2")


def test_words_stand_for_labels_in_order_or_by_name():
    assert columns.from_rows("m", ROWS, options=["no", "yes"]).options == (" no", " yes")
    assert columns.from_rows("m", ROWS, options=["good=yes", "bad=no"]).options == (" no", " yes")
    assert columns.from_rows("m", ROWS, options=["good", "bad"]).options == (" bad", " good")
    with pytest.raises(ValueError, match=r"options are 3 words, and label has 2 values \(bad, good\)"):
        columns.from_rows("m", ROWS, options=["a", "b", "c"])
    with pytest.raises(ValueError, match="options have no word for label 'good'"):
        columns.from_rows("m", ROWS, options=["bad=no", "fine=yes"])


def test_prompts_and_completions_and_conversations_are_found_by_their_columns():
    assert columns.from_rows("m", [{"prompt": "a", "completion": "b"}]).kind == "answer"
    assert columns.from_rows("m", [{"messages": []}]).messages == "messages"


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        ValueError, match="text is 'body', which is not a column of m; the columns are text, label; name one with --text"
    ):
        columns.from_rows("m", ROWS, text="body")
    with pytest.raises(ValueError, match="label is 'stars', which is not a column of m"):
        columns.from_rows("m", ROWS, label="stars")
    many = [{"text": "a", "label": str(i)} for i in range(150)]
    with pytest.raises(ValueError, match="label 'label' has 150 different values, more than 100"):
        columns.from_rows("m", many)


# Splits.


def loaded(tmp_path, rows, **more):
    path = write(tmp_path / "mine.jsonl", rows)
    return splits.with_rows(columns.from_rows("mine", rows), [Source(str(path), more.pop("weight", 1.0))], **more)


def test_splits_that_are_not_given_are_cut_from_the_training_rows(tmp_path):
    task = loaded(tmp_path, ROWS)
    assert [len(rows) for rows in (task.train, task.dev, task.test)] == [28, 4, 8]
    assert loaded(tmp_path, list(reversed(ROWS))).test == task.test, "the split is of the rows, not of their order"
    texts = [e.row["text"] for split in (task.train, task.dev, task.test) for e in split]
    assert sorted(texts) == sorted(row["text"] for row in ROWS)


def test_repeated_and_leaking_rows_are_counted_and_left_out(tmp_path):
    test = write(tmp_path / "test.jsonl", ROWS[:5])
    task = loaded(tmp_path, [*ROWS, *ROWS[:3]], test=str(test))
    assert "train: 3 of 43 rows repeat another row; one of each is used" in task.notes
    assert any(note.endswith("rows of train are also in test; they are removed from train") for note in task.notes)
    assert len(task.test) == 5
    there = {e.row["text"] for e in task.test}
    assert not there & {e.row["text"] for e in (*task.train, *task.dev)}


def test_a_text_with_two_labels_is_said(tmp_path):
    task = loaded(tmp_path, [*ROWS, {"text": ROWS[0]["text"], "label": "good"}])
    assert "train: texts with several different labels: 1; the last label is used" in task.notes


def test_a_weight_is_how_often_an_epoch_sees_a_row(tmp_path):
    double = loaded(tmp_path, ROWS, weight=2.0)
    assert len(double.train) == 2 * len({e.id for e in double.train})
    assert {e.id for e in double.train}.isdisjoint({e.id for e in (*double.dev, *double.test)})
    half = loaded(tmp_path, [{"text": f"{i}", "label": str(i % 2)} for i in range(400)], weight=0.5)
    assert 150 < sum(map(len, (half.train, half.dev, half.test))) < 250


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "row 41: label 'label': 'label' is undefined; the columns are text"),
        ({"text": "", "label": "bad"}, "row 41: text is empty; fill it, or leave the row out"),
        ({"text": None, "label": "bad"}, "row 41: text is empty"),
        ({"text": "a", "label": ""}, "row 41: label is empty"),
        ({"text": "a", "label": "ugly"}, "row 41: label is 'ugly'; it must be one of bad, good"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_its_number(tmp_path, row, says):
    path = write(tmp_path / "mine.jsonl", [*ROWS, row])
    with pytest.raises(ValueError, match=r".") as raised:
        splits.with_rows(columns.from_rows("mine", ROWS), [Source(str(path))])
    assert f"data {path}: {says}" in str(raised.value)
