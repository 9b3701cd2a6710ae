"""Rows of a leaderboard in a file."""

from __future__ import annotations

import os

import pytest

from tests.bench.leaderboard import row
from zerograd.bench import rows


def test_a_row_that_was_cut_short_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "l.jsonl"
    rows.append(path, row("mezo", 0, "01"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert len(rows.read(path)) == 1
    rows.append(path, row("mezo", 1, "01"))
    rows.append(path, row("mezo", 1, "11"))
    assert [one["accuracy"] for one in rows.read(path)] == [0.5, 1.0], "the last row of a key counts"
    assert path.read_bytes().startswith(whole)
    path.write_bytes(path.read_bytes().rstrip())
    rows.append(path, row("mezo", 2, "01"))
    assert [one["seed"] for one in rows.read(path)] == [0, 1, 2], "a last line that lacks nothing but its end is a row"


def test_a_row_for_which_there_is_no_room_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "l.jsonl"
    rows.append(path, row("mezo", 0, "01"))
    before = path.read_bytes()
    kept, write = [], os.write

    def short(handle, data):
        if kept:
            raise OSError("no space left")
        kept.append(write(handle, data[:40]))
        return kept[0]

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="no space left"):
        rows.append(path, row("mezo", 1, "01"))
    monkeypatch.undo()
    assert path.read_bytes().startswith(before)
    rows.append(path, row("mezo", 1, "01"))
    assert [one["seed"] for one in rows.read(path)] == [0, 1]


def test_answers_are_packed_without_loss():
    for right in ("0", "1", "0001", "1" * 700, "0" * 9 + "1"):
        assert rows.unpack(rows.pack(right)) == [int(bit) for bit in right]
