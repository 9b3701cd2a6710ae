"""The journal's file: what was written is read or refused."""

from __future__ import annotations

import errno
import io
import itertools
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zerograd as zg
from tests import ROOT
from zerograd import journal
from zerograd.journal import (
    JournalDamaged,
    JournalLocked,
    Note,
    Reader,
    Restore,
    Skip,
    Step,
    Writer,
    WrongBase,
)

HEADER = {"groups": 2, "seed": 7}


def a_step(number: int, decays: bool = False, directions: int = 3) -> Step:
    values = np.arange(2 * directions, dtype=np.float32).reshape(2, -1) / 7 + number
    return Step(number, 0.5, np.float32([0.1, 0.2]), np.float32([1, 0.9]) if decays else None, values)


RECORDS = [
    a_step(0),
    Note({"dev_loss": 1.5, "text": "ünïcode", "none": None}),
    a_step(1, True),
    Skip(2, 3.0),
    a_step(3, directions=40),
    Restore(1, {"back_offs": 1}),
    a_step(4),
]


def written(path: Path, records: list[Any] = RECORDS, header: dict[str, Any] = HEADER) -> bytes:
    writer = Writer.create(path, header)
    for record in records:
        writer.add(record)
    writer.close()
    return path.read_bytes()


def read(data: bytes) -> tuple[list[Any], Reader]:
    reader = Reader(io.BytesIO(data), len(data))
    return list(reader), reader


def plain(record: Any) -> Any:
    """A record as what can be compared."""
    if not isinstance(record, Step):
        return record
    return record.number, record.loss, *(None if v is None else v.tolist() for v in (record.lrs, record.decays, record.multipliers))


def test_what_is_written_is_read(tmp_path):
    found, reader = read(written(tmp_path / "j"))
    assert list(map(plain, found)) == list(map(plain, RECORDS))
    assert (reader.header, reader.steps, reader.torn) == (HEADER, 5, 0)


def test_the_layout_is_frozen(tmp_path):
    """Bytes worked out by hand from docs/journal.md, so that old journals stay readable."""
    data = written(tmp_path / "j", [Step(0, 0.5, np.float32([0.25]), None, np.float32([[2.0]])), Skip(1, 1.0)], {"groups": 1})
    text = b'{"groups": 1}'
    head = b"zgj1" + struct.pack("<I", len(text)) + text
    import zlib

    body = head + struct.pack("<I", zlib.crc32(head))
    for record in (
        bytes([12, 0, 0, 0, 1, 0x5A ^ 12 ^ 1]) + struct.pack("<fff", 0.5, 0.25, 2.0),
        bytes([4, 0, 0, 0, 3, 0x5A ^ 4 ^ 3]) + struct.pack("<f", 1),
    ):
        crc = zlib.crc32(record, int.from_bytes(body[-4:], "little"))
        body += record + struct.pack("<I", crc)
    assert data == body


def test_every_byte_that_is_changed_is_found_with_its_record(tmp_path):
    data = written(tmp_path / "j")
    edges = [0]
    for kept in range(len(RECORDS) + 1):
        edges.append(len(written(tmp_path / f"{kept}", RECORDS[:kept])))
    for at in range(len(data)):
        first = max(edge for edge in edges if edge <= at)
        for flip in (0x01, 0x80, 0xFF):
            changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            with pytest.raises(JournalDamaged) as raised:
                read(changed)
            assert raised.value.offset == first


def test_records_that_are_missing_moved_or_of_another_journal_are_found(tmp_path):
    data = written(tmp_path / "j")
    edges = [len(written(tmp_path / f"{kept}", RECORDS[:kept])) for kept in range(len(RECORDS) + 1)]
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    start = data[: edges[0]]
    for wrong in (parts[1:], [parts[1], parts[0], *parts[2:]], [parts[0], *parts]):
        with pytest.raises(JournalDamaged):
            read(start + b"".join(wrong))
    with pytest.raises(JournalDamaged):
        read(written(tmp_path / "other", [], {"groups": 2, "seed": 8}) + b"".join(parts))


def test_a_journal_that_was_cut_anywhere_keeps_every_whole_record(tmp_path):
    data = written(tmp_path / "j")
    edges = [len(written(tmp_path / f"{kept}", RECORDS[:kept])) for kept in range(len(RECORDS) + 1)]
    for length in range(edges[0], len(data)):
        found, reader = read(data[:length])
        whole = sum(edge <= length for edge in edges) - 1
        assert list(map(plain, found)) == list(map(plain, RECORDS[:whole]))
        assert reader.torn == length - edges[whole]
    for length in range(edges[0]):
        with pytest.raises(JournalDamaged, match="header"):
            read(data[:length])


def test_a_torn_record_is_cut_when_the_journal_is_gone_on_with(tmp_path):
    path = tmp_path / "j"
    data = written(path)
    path.write_bytes(data[:-3])
    heard: list[Any] = []
    writer, header, cut = Writer.reopen(path, heard.append)
    assert (header, len(heard), cut) == (HEADER, len(RECORDS) - 1, len(data) - 3 - len(written(tmp_path / "6", RECORDS[:-1])))
    writer.add(RECORDS[-1])
    writer.close()
    assert path.read_bytes() == data


def test_a_journal_is_locked_while_it_is_written(tmp_path):
    path = tmp_path / "j"
    writer = Writer.create(path, HEADER)
    with pytest.raises(JournalLocked, match="written by another process"):
        Writer.reopen(path, lambda record: None)
    with pytest.raises(FileExistsError):
        Writer.create(path, HEADER)
    writer.close()
    Writer.reopen(path, lambda record: None)[0].close()


def test_a_full_disk_loses_nothing_that_was_recorded(tmp_path, monkeypatch):
    path = tmp_path / "j"
    writer = Writer.create(path, HEADER)
    writer.add(RECORDS[0])
    before = path.read_bytes()
    real, left = os.write, [10]

    def full(handle: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        some = min(left[0], len(data))
        left[0] -= some
        return real(handle, bytes(data)[:some])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        writer.add(RECORDS[2])
    assert path.read_bytes() == before
    left[0] = 1 << 20
    writer.add(RECORDS[3])
    writer.close()
    assert list(map(plain, read(path.read_bytes())[0])) == list(map(plain, [RECORDS[0], Skip(1, 3.0)]))


def test_a_record_that_may_not_be_on_the_disk_is_none(tmp_path, monkeypatch):
    """The step that it is of is not taken: a replay must not take it either."""
    path = tmp_path / "j"
    writer = Writer.create(path, HEADER)
    writer.add(RECORDS[0])
    before = path.read_bytes()
    monkeypatch.setattr(writer, "_synced", -math.inf)

    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output"):
            writer.add(RECORDS[1])
    assert path.read_bytes() == before
    writer.add(RECORDS[1])
    writer.close()
    assert list(map(plain, read(path.read_bytes())[0])) == list(map(plain, RECORDS[:2]))


def test_a_tensor_that_is_seen_otherwise_is_refused(tmp_path):
    """Its noise has other addresses, though shapes and storage are the same."""
    net = torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3), torch.nn.Linear(6, 6))
    by_module, by_names = zg.optim.MeZO(net), zg.optim.MeZO(list(net.named_parameters()))
    assert [slot.view for slot in by_module.slots] != [slot.view for slot in by_names.slots]
    said = json.loads(json.dumps(journal.table(by_module.slots, by_module.group_of)))
    assert journal.fit(by_module.slots, said, 1) == [0] * 4
    with pytest.raises(WrongBase, match=r"0.weight was seen as 1 x 6 x 12 and here as 6 x 4 x 3; build the optimiser"):
        journal.fit(by_names.slots, said, 1)
    saved = by_module.state_dict()
    zg.optim.MeZO(net).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"0.weight was saved with view \(1, 6, 12\)"):
        by_names.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"1.weight was saved with id 2, from which its noise comes, and has 0 here"):
        zg.optim.MeZO([(f"1.{name}", p) for name, p in net[1].named_parameters()]).load_state_dict(saved)


@pytest.mark.full
def test_a_file_that_may_not_grow_ends_a_step_with_the_weights_as_they_were(tmp_path):
    """By the system's own limit of a file's size, in a process of its own."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.oracles.methods import Net, batch, same, stored
import zerograd as zg
from zerograd.journal import Writer
net = Net()
opt = zg.optim.MeZO(net, lr=0.1)
writer = Writer.create({str(tmp_path / "j")!r} and __import__("pathlib").Path({str(tmp_path / "j")!r}), {{"groups": 1}})
opt.record = writer.add
opt.step(net.losses, batch())
before = stored(opt)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (writer.offset + 5, writer.offset + 5))
try:
    opt.step(net.losses, batch())
except OSError as error:
    assert same(before, stored(opt)) and opt.steps == 1
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert len(read((tmp_path / "j").read_bytes())[0]) == 1


def test_a_record_that_ends_in_zeros_was_not_written_to_its_end(tmp_path):
    """The last page that arrived ends anywhere in it."""
    data = written(tmp_path / "a")
    last = len(data) - len(written(tmp_path / "b", RECORDS[:-1]))
    for kept in range(last):
        cut = data[: len(data) - last + kept] + bytes(last - kept)
        if cut != data:
            found, reader = read(cut + bytes(100_000))
            assert (len(found), reader.torn) == (len(RECORDS) - 1, last + 100_000)


def test_zeros_at_the_end_are_what_a_loss_of_power_left(tmp_path):
    data = written(tmp_path / "j")
    for zeros in (1, 5, 6, 30, 100_000):
        found, reader = read(data + bytes(zeros))
        assert (len(found), reader.torn) == (len(RECORDS), zeros)
        with pytest.raises(JournalDamaged):
            read(data + bytes(30) + b"1" + bytes(zeros))


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_crash_the_reader(data):
    """Noise, journals with noise in them, and records with right checksums around wrong contents."""
    how = data.draw(st.sampled_from(["noise", "spliced", "payload", "header"]))
    good = journal.format.to_header(HEADER)
    if how == "noise":
        tried = data.draw(st.sampled_from([b"", b"zgj1", good])) + data.draw(st.binary(max_size=200))
    elif how == "spliced":
        crc = int.from_bytes(good[-4:], "little")
        whole = good + journal.format.to_bytes(a_step(0), crc)
        at = data.draw(st.integers(0, len(whole)))
        tried = whole[:at] + data.draw(st.binary(max_size=30)) + whole[at + data.draw(st.integers(0, 20)) :]
    else:
        import zlib

        text = data.draw(st.one_of(st.binary(max_size=60), st.sampled_from([b"[" * 100_000, b'{"groups": 1e999}', b"{}", b"null"])))
        if how == "header":
            tried = b"zgj1" + struct.pack("<I", len(text)) + text
            tried += struct.pack("<I", zlib.crc32(tried))
        else:
            head = struct.pack("<IB", len(text), data.draw(st.integers(1, 5)))
            record = head + bytes([journal.format._check(head)]) + text
            tried = good + record + struct.pack("<I", zlib.crc32(record, int.from_bytes(good[-4:], "little")))
    try:
        found, reader = read(tried)
    except JournalDamaged:
        pass
    else:
        assert reader.offset + reader.torn == len(tried)
        assert sum(isinstance(record, (Step, Skip)) for record in found) == reader.steps


def test_no_length_is_trusted_before_the_file_is_seen_to_have_it():
    """A header or record that says it is large is refused or cut, and nothing of its size is asked for."""

    class Counting(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            self.most = max(self.most, size)
            return super().read(size)

    for tried in (b"zgj1" + struct.pack("<I", 1 << 31) + b"{}", journal.format.to_header(HEADER) + b"\xff\xff\xff\x7f\x05"):
        for check in range(256):
            file = Counting(tried + bytes([check]) + b"rest")
            with pytest.raises(JournalDamaged):
                list(Reader(file, len(file.getvalue())))
            assert file.most <= len(tried)


def test_20_000_steps_of_mezo_stay_under_500_kilobytes(tmp_path):
    """With a header that tells the 272 tensors of a model of 30 layers."""
    rows = [
        {"id": i, "name": f"model.layers.{i}.self_attn.q_proj.weight", "aliases": [], "shape": [576, 576], "storage": "split"}
        | {"scale": 0.0123456789 + i, "group": 0}
        for i in range(272)
    ]
    path = tmp_path / "j"
    writer = Writer.create(path, {"groups": 1, "tensors": rows})
    for number in range(20_000):
        writer.add(Step(number, 0.1, np.float32([1e-6]), None, np.float32([[0.3]])))
    writer.close()
    assert path.stat().st_size < 500_000


def test_a_step_that_there_was_not_is_refused():
    with pytest.raises(ValueError, match="step 9 is asked for, and the journal has 5 steps"):
        journal.path(RECORDS, 9)
