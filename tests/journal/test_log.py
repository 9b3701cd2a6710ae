"""The container of a journal: bytes that were written are read or refused, whatever the records mean."""

from __future__ import annotations

import errno
import io
import itertools
import json
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from zerograd.journal.log import (
    JournalDamaged,
    LogReader,
    LogWriter,
    header_bytes,
    record_bytes,
)
from zerograd.machine.files import FileLocked

HEADER = {"of": "anything", "number": 7}
RECORDS = [(1, b""), (7, b"abc"), (255, bytes(5)), (1, bytes(range(256))), (2, b"\xff" * 40), (3, b"the last")]


def written(path: Path, records: list[tuple[int, bytes]] = RECORDS, header: dict[str, Any] = HEADER) -> bytes:
    writer = LogWriter.create(path, header)
    for kind, payload in records:
        writer.append(kind, payload)
    writer.close()
    return path.read_bytes()


def read(data: bytes, kinds: int = 255) -> tuple[list[tuple[int, bytes]], LogReader]:
    reader = LogReader(io.BytesIO(data), len(data), kinds)
    return [(kind, payload) for kind, payload, _ in reader.payloads()], reader


def edges_of(path: Path) -> list[int]:
    """Where the header ends, and each record."""
    return [len(written(path / f"first {count}", RECORDS[:count])) for count in range(len(RECORDS) + 1)]


def test_records_of_any_kind_come_back_with_their_offsets(tmp_path):
    data = written(tmp_path / "log")
    found, reader = read(data)
    assert (found, reader.header, reader.torn, reader.offset) == (RECORDS, HEADER, 0, len(data))
    again = LogReader(io.BytesIO(data), len(data))
    assert [offset for _, _, offset in again.payloads()] == edges_of(tmp_path)[:-1]


def test_the_container_is_frozen(tmp_path):
    """Bytes worked out by hand from docs/journal.md."""
    text = b'{"number": 1}'
    start = b"zgj1" + struct.pack("<I", len(text)) + text
    first = struct.pack("<IB", 3, 9) + bytes([0x5A ^ 3 ^ 9]) + b"abc"
    second = struct.pack("<IB", 0, 2) + bytes([0x5A ^ 0 ^ 2])
    expected, before = b"", b""
    for part in (start, first, second):  # a crc is of everything before it but the other crcs
        before += part
        expected += part + struct.pack("<I", zlib.crc32(before))
    assert written(tmp_path / "log", [(9, b"abc"), (2, b"")], {"number": 1}) == expected


def test_every_byte_that_is_changed_is_found_with_its_record(tmp_path):
    data, edges = written(tmp_path / "log"), [0, *edges_of(tmp_path)]
    for at in range(len(data)):
        first = max(edge for edge in edges if edge <= at)
        for flip in (0x01, 0x80, 0xFF):
            changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            with pytest.raises(JournalDamaged) as raised:
                read(changed)
            assert raised.value.offset == first


def test_records_that_are_missing_moved_or_of_another_log_are_found(tmp_path):
    data, edges = written(tmp_path / "log"), edges_of(tmp_path)
    start, parts = data[: edges[0]], [data[a:b] for a, b in itertools.pairwise(edges)]
    for wrong in (parts[1:], [parts[1], parts[0], *parts[2:]], [parts[0], *parts]):
        with pytest.raises(JournalDamaged):
            read(start + b"".join(wrong))
    with pytest.raises(JournalDamaged):
        read(written(tmp_path / "other", [], HEADER | {"number": 8}) + b"".join(parts))


def test_a_kind_beyond_the_readers_is_damage(tmp_path):
    data = written(tmp_path / "log", [(1, b"a"), (6, b"b")])
    assert read(data, kinds=6)[0] == [(1, b"a"), (6, b"b")]
    with pytest.raises(JournalDamaged, match="head differs"):
        read(data, kinds=5)


def test_a_log_that_was_cut_anywhere_keeps_every_whole_record(tmp_path):
    data, edges = written(tmp_path / "log"), edges_of(tmp_path)
    for length in range(edges[0], len(data)):
        found, reader = read(data[:length])
        whole = sum(edge <= length for edge in edges) - 1
        assert found == RECORDS[:whole]
        assert reader.torn == length - edges[whole]
    for length in range(edges[0]):
        with pytest.raises(JournalDamaged, match="header"):
            read(data[:length])


def test_a_record_that_ends_in_zeros_was_not_written_to_its_end(tmp_path):
    """The last page that arrived ends anywhere in it."""
    data, edges = written(tmp_path / "log"), edges_of(tmp_path)
    last = len(data) - edges[-2]
    for kept in range(last):
        cut = data[: len(data) - last + kept] + bytes(last - kept)
        if cut != data:
            found, reader = read(cut + bytes(100_000))
            assert (len(found), reader.torn) == (len(RECORDS) - 1, last + 100_000)


def test_zeros_at_the_end_are_a_loss_of_power(tmp_path):
    data = written(tmp_path / "log")
    for zeros in (1, 5, 6, 30, 100_000):
        found, reader = read(data + bytes(zeros))
        assert (len(found), reader.torn) == (len(RECORDS), zeros)
        with pytest.raises(JournalDamaged):
            read(data + bytes(30) + b"1" + bytes(zeros))


def test_a_torn_record_is_cut_when_the_log_is_gone_on_with(tmp_path):
    path = tmp_path / "log"
    data = written(path)
    path.write_bytes(data[:-3])

    def all_of(file: Any, size: int) -> LogReader:
        reader = LogReader(file, size)
        assert [(kind, payload) for kind, payload, _ in reader.payloads()] == RECORDS[:-1]
        return reader

    writer, reader = LogWriter.reopen_with(path, all_of)
    assert reader.torn == len(data) - 3 - edges_of(tmp_path)[-2]
    writer.append(*RECORDS[-1])
    writer.close()
    assert path.read_bytes() == data


def test_a_log_is_locked_while_it_is_written(tmp_path):
    path = tmp_path / "log"
    writer = LogWriter.create(path, HEADER)

    def header_of(file: Any, size: int) -> LogReader:
        return LogReader(file, size)

    with pytest.raises(FileLocked, match="written by another process"):
        LogWriter.reopen_with(path, header_of)
    with pytest.raises(FileExistsError):
        LogWriter.create(path, HEADER)
    writer.close()
    LogWriter.reopen_with(path, header_of)[0].close()


def test_a_full_disk_loses_nothing_that_was_recorded(tmp_path, monkeypatch):
    path = tmp_path / "log"
    writer = LogWriter.create(path, HEADER)
    writer.append(*RECORDS[1])
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
        writer.append(*RECORDS[3])
    assert path.read_bytes() == before
    left[0] = 1 << 20
    writer.append(*RECORDS[2])
    writer.close()
    assert read(path.read_bytes())[0] == RECORDS[1:3]


def test_a_record_that_may_not_be_on_the_disk_is_none(tmp_path, monkeypatch):
    path = tmp_path / "log"
    writer = LogWriter.create(path, HEADER)
    writer.append(*RECORDS[0])
    before = path.read_bytes()
    monkeypatch.setattr(writer, "_synced", -math.inf)

    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output"):
            writer.append(*RECORDS[1])
    assert path.read_bytes() == before
    writer.append(*RECORDS[1])
    writer.close()
    assert read(path.read_bytes())[0] == RECORDS[:2]


def test_no_length_is_trusted_before_the_file_is_seen_to_have_it():
    """A header or record that says it is large is refused or cut, and nothing of its size is asked for."""

    class Counting(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            self.most = max(self.most, size)
            return super().read(size)

    for tried in (b"zgj1" + struct.pack("<I", 1 << 31) + b"{}", header_bytes(HEADER) + b"\xff\xff\xff\x7f\x05"):
        for check in range(256):
            file = Counting(tried + bytes([check]) + b"rest")
            with pytest.raises(JournalDamaged):
                list(LogReader(file, len(file.getvalue())).payloads())
            assert file.most <= len(tried)


@pytest.mark.parametrize("text", [b"[1]", b"null", b"{", b"\xff", b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_damage(text):
    data = b"zgj1" + struct.pack("<I", len(text)) + text
    with pytest.raises(JournalDamaged, match="JSON"):
        read(data + struct.pack("<I", zlib.crc32(data)))


def test_what_is_too_long_is_not_written(monkeypatch):
    monkeypatch.setattr("zerograd.journal.log.LARGEST", 100)
    with pytest.raises(ValueError, match="the header has 105 bytes, more than 100"):
        header_bytes({"x": "x" * 96})
    with pytest.raises(ValueError, match="a record has 101 bytes, more than 100"):
        record_bytes(1, bytes(101), 0)


def test_a_long_header_is_compressed_and_reads_as_it_was(tmp_path):
    header = HEADER | {"tensors": [{"id": i, "name": f"model.layers.{i}.weight", "shape": [64, 64]} for i in range(200)]}
    data = header_bytes(header)
    assert len(data) < len(json.dumps(header)) / 5
    assert LogReader(io.BytesIO(data), len(data)).header == header


@pytest.mark.parametrize("mend", [lambda text: text[:-3], lambda text: text + b"more", lambda text: zlib.compress(b"[1]")])
def test_a_compressed_header_that_is_not_whole_is_damage(mend):
    text = mend(zlib.compress(json.dumps(HEADER).encode()))
    data = b"zgj1" + struct.pack("<I", len(text)) + text
    with pytest.raises(JournalDamaged, match="JSON"):
        read(data + struct.pack("<I", zlib.crc32(data)))


def test_a_compressed_header_is_never_longer_in_memory_than_a_header_may_be(monkeypatch):
    monkeypatch.setattr("zerograd.journal.log.LARGEST", 10_000)
    text = zlib.compress(b'{"x": "' + b"x" * 1_000_000 + b'"}')
    data = b"zgj1" + struct.pack("<I", len(text)) + text
    with pytest.raises(JournalDamaged, match="JSON"):
        read(data + struct.pack("<I", zlib.crc32(data)))
