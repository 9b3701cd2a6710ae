"""Folders as hubs and libraries write them; no file of them is left out without a word."""

from __future__ import annotations

import pytest

from tests.text.data.files import write
from zerograd.text.data import sources


def folder(root, names):
    """Files of one row, whose text is the file's name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [{"text": name, "label": "x"}])
    return str(root)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (
            ["data/train-00001-of-00002.csv", "data/train-00000-of-00002.csv", "data/test-00000-of-00001.csv"],
            {"train": ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv"], "test": ["data/test-00000-of-00001.csv"]},
        ),
        (["train.csv", "validation.csv"], {"train": ["train.csv"], "dev": ["validation.csv"]}),
        (["reviews_train.jsonl", "reviews_test.jsonl"], {"train": ["reviews_train.jsonl"], "test": ["reviews_test.jsonl"]}),
        (["a/train/0000.parquet", "a/train/0001.parquet"], {"train": ["a/train/0000.parquet", "a/train/0001.parquet"]}),
        (
            ["train/part-2.csv", "train/part-10.csv", "test/part-1.csv"],
            {"train": ["train/part-2.csv", "train/part-10.csv"], "test": ["test/part-1.csv"]},
        ),
        (["Train.csv", "TEST.csv"], {"train": ["Train.csv"], "test": ["TEST.csv"]}),
        (["all.csv"], {"train": ["all.csv"]}),
        (["all-00000-of-00002.csv", "all-00001-of-00002.csv"], {"train": ["all-00000-of-00002.csv", "all-00001-of-00002.csv"]}),
        (["train.json", "dataset_infos.json", ".cache/train.json"], {"train": ["train.json"]}),
    ],
)  # fmt: skip
def test_each_file_is_in_the_split_that_it_is_named_after(tmp_path, names, splits):
    found = sources.read(folder(tmp_path, names))
    assert {split: [row["text"] for row in rows] for split, rows in found.items()} == splits


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train.csv", "train.jsonl"], "train.csv and train.jsonl may hold the same rows; give --data the one that is meant"),
        (
            ["train.csv", "extra.csv"],
            "extra.csv belongs to no split; name the files with --data, --dev and --test, or move",
        ),
        (["train.csv", "train_extra.csv"], "train.csv and train_extra.csv are all for train; give --data the one that is meant"),
        (["dev.csv", "validation.csv", "train.csv"], "dev.csv and validation.csv are all for dev"),
        (["en/train.csv", "de/train.csv"], "de/train.csv and en/train.csv are all for train"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], "part 1 of 3 of train is missing; fetch it"),
        (["train-00000-of-00001.csv", "train-00000-of-00002.csv"], "are parts of different tables"),
        (["a.csv", "b.csv"], "has no train split; it has a, b"),
        (["test.csv", "validation.csv"], "has no train split; it has test, validation"),
        (["train_and_test.csv", "train.csv"], "train_and_test.csv belongs to no split"),
        ([], "has no train split; it has none"),
    ],
)
def test_a_file_that_would_be_left_out_is_named(tmp_path, names, says):
    with pytest.raises(ValueError, match=r".") as raised:
        sources.read(folder(tmp_path, names))
    assert says in str(raised.value)


def test_a_split_in_a_format_that_is_not_read_is_named(tmp_path):
    there = folder(tmp_path, ["train.csv"])
    (tmp_path / "test.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"test.xlsx is not read; save it as one of .jsonl"):
        sources.read(there)


def test_splits_by_a_tasks_own_names(tmp_path):
    there = folder(tmp_path, ["train.csv", "validation_matched.csv", "validation_mismatched.csv", "odd.csv"])
    found = sources.read(there, {"train": "train", "dev": "validation_matched"})
    assert {split: rows[0]["text"] for split, rows in found.items()} == {"train": "train.csv", "dev": "validation_matched.csv"}


@pytest.mark.full
def test_what_datasets_has_saved_to_disk_is_read(tmp_path):
    import datasets

    rows = [{"text": f"a {i}", "label": i % 2, "score": float("nan")} for i in range(5)]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(tmp_path / "several")
    clean = [row | {"score": None} for row in rows]
    assert sources.read(str(tmp_path / "one")) == {"train": clean}
    assert sources.read(str(tmp_path / "several")) == {"train": clean, "dev": clean[:1]}
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="the saved data set cannot be read"):
        sources.read(str(tmp_path / "one"))
