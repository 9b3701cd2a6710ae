"""Mutated inputs of every reader: no traceback, no hang, nothing left behind."""

from __future__ import annotations

import random

import pytest

from tests.properties.readers import READ, REFUSED, mutated, outcome, readers

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]

NAMES = (
    *("jsonl", "json", "csv", "tsv", "gzip", "parquet", "task", "settings", "journal", "shipped file", "gguf", "safetensors"),
    *("chat template", "shipped header"),
)
COUNT, SEED = 500, 0


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("readers"))


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_input_is_read_or_refused_in_one_line(all_readers, name, tmp_path):
    assert set(NAMES) == set(all_readers)
    reader, failed, seen = all_readers[name], {}, set()
    for whole in reader.wholes:
        assert outcome(reader, whole, tmp_path) == READ
    for number in range(COUNT):
        draw = random.Random(f"{SEED} {name} {number}")
        said = outcome(reader, mutated(draw.choice(reader.wholes), draw), tmp_path)
        seen.add(said)
        if said not in (READ, REFUSED):
            failed[number] = said
    assert not failed, f"{len(failed)} of {COUNT}: {dict(list(failed.items())[:5])}"
    assert seen == {READ, REFUSED} - ({READ} if name == "shipped file" else set()), "all of a shipped file is under checksums"
