"""The journal's file: what was written is read or refused."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zerograd as zg
from tests import ROOT
from tests.oracles.methods import Net, batch, same, stored
from zerograd import journal
from zerograd.cli import main
from zerograd.journal import (
    FileLocked,
    JournalDamaged,
    Note,
    Reader,
    Restore,
    Skip,
    Step,
    Writer,
    WrongBase,
)
from zerograd.journal.header import FORMAT, header_fields, read_header, recorded_memory
from zerograd.journal.log import LogWriter, header_bytes, record_bytes
from zerograd.journal.steps import encode

HEADER = {"groups": 2, "seed": 7}


def a_step(number: int, decays: bool = False, directions: int = 3) -> Step:
    coefficients = np.arange(directions, dtype=np.float32) / 7 + number
    lrs, radii = np.float32([0.1, 0.2]), np.float32([0.01, 0.03])
    return Step(number, 0.5, coefficients, lrs, radii, np.float32([1, 0.9]) if decays else None)


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
    return (
        record.number,
        record.loss,
        *(None if v is None else v.tolist() for v in (record.coefficients, record.lrs, record.radii, record.decays)),
    )


def test_what_is_written_is_read(tmp_path):
    found, reader = read(written(tmp_path / "j"))
    assert list(map(plain, found)) == list(map(plain, RECORDS))
    assert (reader.header, reader.steps, reader.torn) == (HEADER, 5, 0)


def test_the_layout_is_frozen(tmp_path):
    """Bytes worked out by hand from docs/journal.md, so that old journals stay readable."""
    one = Step(0, 0.5, np.float32([2.0]), np.float32([0.25]), np.float32([0.125]))
    two = Step(1, 0.5, np.float32([2.0, 3.0]), np.float32([0.25]), np.float32([0.125]), np.float32([0.75]))
    data = written(tmp_path / "j", [one, two, Skip(2, 1.0), Restore(1, {}), Note({"a": 1})], {"groups": 1})
    text = b'{"groups": 1}'
    head = b"zgj1" + struct.pack("<I", len(text)) + text
    body = head + struct.pack("<I", zlib.crc32(head))
    for record in (
        bytes([4, 0, 0, 0, 6, 0x5A ^ 4 ^ 6]) + struct.pack("<f", 0.125),
        bytes([12, 0, 0, 0, 1, 0x5A ^ 12 ^ 1]) + struct.pack("<fff", 0.5, 0.25, 2.0),
        bytes([20, 0, 0, 0, 2, 0x5A ^ 20 ^ 2]) + struct.pack("<fffff", 0.5, 0.25, 0.75, 2.0, 3.0),
        bytes([4, 0, 0, 0, 3, 0x5A ^ 4 ^ 3]) + struct.pack("<f", 1),
        bytes([6, 0, 0, 0, 4, 0x5A ^ 6 ^ 4]) + struct.pack("<I", 1) + b"{}",
        bytes([8, 0, 0, 0, 5, 0x5A ^ 8 ^ 5]) + b'{"a": 1}',
    ):
        crc = zlib.crc32(record, int.from_bytes(body[-4:], "little"))
        body += record + struct.pack("<I", crc)
    assert data == body


def test_a_journal_that_was_cut_anywhere_keeps_every_whole_record(tmp_path):
    data = written(tmp_path / "j")
    edges = [len(written(tmp_path / f"{kept}", RECORDS[:kept])) for kept in range(len(RECORDS) + 1)]
    radii = edges[0] + 10 + 4 * HEADER["groups"]  # of the first step, in a record before it
    for length in range(edges[0], len(data)):
        found, reader = read(data[:length])
        whole = sum(edge <= length for edge in edges) - 1
        assert list(map(plain, found)) == list(map(plain, RECORDS[:whole]))
        assert reader.torn == length - max(edge for edge in (*edges, radii) if edge <= length)
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
    with pytest.raises(FileLocked, match="written by another process"):
        Writer.reopen(path, lambda record: None)
    with pytest.raises(FileExistsError):
        Writer.create(path, HEADER)
    writer.close()
    Writer.reopen(path, lambda record: None)[0].close()


def test_a_tensor_that_is_seen_otherwise_is_refused(tmp_path):
    """Its noise has other addresses, though shapes and precision are the same."""
    net = torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3), torch.nn.Linear(6, 6))
    by_module, by_names = zg.optim.MeZO(net), zg.optim.MeZO(list(net.named_parameters()))
    assert [space.view for space in by_module.spaces] != [space.view for space in by_names.spaces]
    said = json.loads(json.dumps(journal.table(by_module.spaces, by_module.group_of)))
    assert journal.fit(by_module.spaces, said, 1) == [0] * 4
    with pytest.raises(WrongBase, match=r"0.weight was seen as 1 x 6 x 12 and here as 6 x 4 x 3; build the optimiser"):
        journal.fit(by_names.spaces, said, 1)
    saved = by_module.state_dict()
    zg.optim.MeZO(net).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"0.weight was saved with view \(1, 6, 12\)"):
        by_names.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"1.weight was saved with id 2, a part of its noise's address, and has 0 here"):
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


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_crash_the_reader(data):
    """Noise, journals with noise in them, and records with right checksums around wrong contents."""
    how = data.draw(st.sampled_from(["noise", "spliced", "payload", "header"]))
    good = header_bytes(HEADER)
    if how == "noise":
        tried = data.draw(st.sampled_from([b"", b"zgj1", good])) + data.draw(st.binary(max_size=200))
    elif how == "spliced":
        crc = int.from_bytes(good[-4:], "little")
        whole = good + record_bytes(*encode(a_step(0)), crc)
        at = data.draw(st.integers(0, len(whole)))
        tried = whole[:at] + data.draw(st.binary(max_size=30)) + whole[at + data.draw(st.integers(0, 20)) :]
    else:
        text = data.draw(st.one_of(st.binary(max_size=60), st.sampled_from([b"[" * 100_000, b'{"groups": 1e999}', b"{}", b"null"])))
        if how == "header":
            tried = b"zgj1" + struct.pack("<I", len(text)) + text
            tried += struct.pack("<I", zlib.crc32(tried))
        else:
            tried = good + record_bytes(data.draw(st.integers(1, 6)), text, int.from_bytes(good[-4:], "little"))
    try:
        found, reader = read(tried)
    except JournalDamaged:
        pass
    else:
        assert reader.offset + reader.torn == len(tried)
        assert sum(isinstance(record, (Step, Skip)) for record in found) == reader.steps


def test_20_000_steps_of_mezo_stay_under_500_kilobytes(tmp_path):
    """With a header that tells the 272 tensors of a model of 30 layers."""
    rows = [
        {"id": i, "name": f"model.layers.{i}.self_attn.q_proj.weight", "aliases": [], "shape": [576, 576], "precision": "split"}
        | {"scale": 0.0123456789 + i, "group": 0}
        for i in range(272)
    ]
    path = tmp_path / "j"
    writer = Writer.create(path, {"groups": 1, "tensors": rows})
    for number in range(20_000):
        writer.add(Step(number, 0.1, np.float32([0.3]), np.float32([1e-6]), np.float32([0.01])))
    writer.close()
    assert path.stat().st_size < 500_000


def test_a_step_that_there_was_not_is_refused():
    with pytest.raises(ValueError, match="step 9 is asked for, and the journal has 5 steps"):
        journal.path(RECORDS, 9)


def test_a_journal_of_an_older_format_is_refused_with_the_version_that_reads_it(tmp_path, capsys):
    """A header and a step as version 0.1 wrote them: learning rates inside the multipliers, `parts` and `storage`."""
    opt = zg.optim.MeZO(Net())
    fields = json.loads(json.dumps(header_fields(opt, "mezo", "model", "0" * 32, 0.1)))
    options, tensors = fields.pop("options"), fields.pop("tensors")
    rows = [{"storage" if name == "precision" else name: value for name, value in row.items()} for row in tensors]
    writer = LogWriter.create(tmp_path / "old.zgj", fields | {"format": 2, "parts": options, "tensors": rows})
    writer.append(1, struct.pack("<fff", 0.5, 0.1, 0.3))
    writer.close()
    with pytest.raises(ValueError, match="has format 2") as raised:
        read_header(tmp_path / "old.zgj")
    reads = f"zerograd {zg.__version__} reads {FORMAT}"
    assert str(raised.value) == f"journal {tmp_path / 'old.zgj'} has format 2, and {reads}; use zerograd 0.1, which reads it"
    assert main(["journal", "show", str(tmp_path / "old.zgj")]) == 2
    shown = capsys.readouterr().err.strip()
    assert str(raised.value) in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("unknown", [0, 99, None, "3", [2]])
def test_a_format_that_no_version_is_known_to_read_is_refused(tmp_path, unknown):
    LogWriter.create(tmp_path / "j", {"groups": 1, "format": unknown}).close()
    with pytest.raises(ValueError, match=r"has format .*; use the version that wrote it"):
        read_header(tmp_path / "j")


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_a_step_of_several_groups_comes_back_to_the_bit(tmp_path, groups, decays):
    """Each group's learning rate, radius and decay are its own; coefficients are the step's."""
    draw = np.random.default_rng(groups)

    def drawn(count: int) -> np.ndarray:
        return draw.normal(size=count).astype(np.float32)

    steps = [
        Step(i, float(drawn(1)[0]), drawn(directions), drawn(groups), np.exp(drawn(groups)), drawn(groups) if decays else None)
        for i, directions in enumerate((1, groups, 3 * groups, 7))
    ]
    found, _ = read(written(tmp_path / "j", steps, {"groups": groups}))
    assert list(map(plain, found)) == list(map(plain, steps))


@pytest.mark.parametrize("kind", [1, 2])
def test_a_step_too_short_for_its_groups_is_damage(tmp_path, kind):
    """It has a loss and the numbers of its groups, and no coefficient; or a number is not whole."""
    fields = {1: 1, 2: 2}[kind]
    for length in (4 + 2 * fields * 4, 4 + 2 * fields * 4 + 3, 4, 2):
        writer = LogWriter.create(tmp_path / f"{length}", HEADER)
        writer.append(kind, bytes(length))
        writer.close()
        with pytest.raises(JournalDamaged, match="too short"):
            read((tmp_path / f"{length}").read_bytes())


@pytest.mark.parametrize("radius", [0.0, -0.1, float("nan")])
def test_a_radius_that_is_not_above_0_is_damage(tmp_path, radius):
    """Coefficients of other groups are divided by it; a file from elsewhere may have anything in it."""
    step = Step(0, 0.5, np.float32([1.0]), np.float32([0.1, 0.1]), np.float32([0.01, radius]))
    with pytest.raises(JournalDamaged, match="a radius is not above 0, at byte"):
        read(written(tmp_path / "j", [step]))


def test_radii_are_recorded_when_they_change_and_after_a_run_is_gone_on_with(tmp_path):
    """A step whose groups have the radii of the step before takes no bytes for them."""
    step, path = a_step(0), tmp_path / "j"
    other = replace(step, radii=np.float32([0.5, 0.03]))
    sizes = [len(written(tmp_path / str(count), [step] * count)) for count in (1, 2)]
    assert len(written(path, [step, other])) - sizes[1] == 10 + 4 * HEADER["groups"]
    writer, _, _ = Writer.reopen(path, lambda record: None)
    before = writer.offset
    writer.add(other)
    assert writer.offset - before == sizes[1] - sizes[0]
    writer.close()
    found, _ = read(path.read_bytes())
    assert [one.radii.tolist() for one in found] == [one.radii.tolist() for one in (step, other, other)]


def test_a_step_before_any_radii_is_damage(tmp_path):
    writer = LogWriter.create(tmp_path / "j", HEADER)
    writer.append(*encode(a_step(0)))
    writer.close()
    with pytest.raises(JournalDamaged, match="before any radii"):
        read((tmp_path / "j").read_bytes())


@pytest.mark.parametrize("method", ["mezo", "fzoo"])
def test_a_run_of_two_groups_is_made_again_from_its_file(tmp_path, method):
    """Groups with their own learning rate, radius and decay; FZOO's coefficients do not depend on the radius."""

    def of(net: Net) -> Any:
        groups = [{"params": [*net.embed.named_parameters(prefix="embed"), *net.hidden.named_parameters(prefix="hidden")]}]
        groups += [{"params": list(net.head.named_parameters(prefix="head")), "lr": 0.02, "eps": 0.05, "weight_decay": 0.1}]
        return zg.optim.METHODS[method](groups, lr=0.05, eps=0.01, seed=3)

    net, again = Net(), Net()
    opt, twin = of(net), of(again)
    writer = Writer.create(tmp_path / "j", header_fields(opt, method, "model", "0" * 32, 0.05))
    opt.record = writer.add
    for seed in range(3):
        opt.step(net.losses, batch(seed=seed))
    writer.close()
    header, (records, _) = read_header(tmp_path / "j"), read((tmp_path / "j").read_bytes())
    assert records[0].radii.tolist() == np.float32([0.01, 0.05]).tolist()
    groups = journal.fit(twin.spaces, header["tensors"], header["groups"])
    assert groups == opt.group_of
    journal.replay(recorded_memory(header, twin.spaces, groups), journal.path(records))
    assert same(stored(opt), stored(twin))
    assert not same(stored(opt), stored(of(Net())))


def test_150_steps_of_16_directions_fit_in_16_kilobytes(tmp_path):
    """With a table of 40 tensors, five evaluations and a note of the time every five steps."""
    tensors = [
        {"id": 9 * i, "name": f"model.layers.{i // 2}.self_attn.{'qk'[i % 2]}_proj.weight", "aliases": [], "shape": [576, 576],
         "precision": "split", "scale": 0.1 + 0.0123456789 * i, "group": 0}
        for i in range(40)
    ]  # fmt: skip
    generator = np.random.default_rng(0)
    one = np.float32([0.1])
    loop = {
        "elapsed": 320.075, "flat_steps": 0, "back_offs": 0, "best_step": 13, "lowest": -0.075, "lowest_loss": -0.075, "waited": 0,
        "loss": -0.058611793692699234, "dev": 0.075, "next": 2, "probe_due": 32,
    }  # fmt: skip
    records: list[Any] = []
    for number in range(150):
        records.append(Step(number, 0.5, generator.normal(size=16).astype(np.float32), one, one))
        if number % 5 == 4:
            records.append(Note({"seconds": 1234.567 + number}))
        if number % 30 == 29:
            records.append(Note({"loop": loop | {"best_step": number}, "forwards": 4 * number, "signal": [[], []]}))
    data = written(tmp_path / "j", records, {"groups": 1, "tensors": tensors})
    assert len(data) < 16 << 10
    assert read(data)[0][-1] == records[-1]
