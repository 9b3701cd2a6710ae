"""Snapshots: the bits come back, an interrupted one leaves the older, and no copy is held."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zerograd.directions import Draws
from zerograd.evaluate.micro_batch import PeakBytes
from zerograd.journal.snapshot import Snapshot
from zerograd.optim import method_of
from zerograd.spaces import Space, collect
from zerograd.update import Memory


def spaces(precision: str) -> list[Space]:
    torch.manual_seed(0)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)).to(dtype)
    found = collect(model, precision)
    for space in found:
        for tensor in space.saved().values():
            tensor.random_(-100, 100)
    return found


def memory_of(found: list[Space]) -> Memory:
    """The memory of a method that keeps a tensor beside each space."""
    method = method_of("momentum")
    memory = Memory(method.rule, method.query, Draws(method.draw, 0), found, [0] * len(found), 1)
    for tensor in memory.tensors.values():
        tensor.random_(100)
    return memory


def bits(found: list[Space], memory: Memory) -> list[torch.Tensor]:
    stored = [tensor for space in found for tensor in space.stored().values()]
    return [tensor.clone() for tensor in [*stored, *memory.tensors.values()]]


@pytest.mark.parametrize("precision", ["float32", "split", "bfloat16"])
def test_every_bit_comes_back(tmp_path, precision):
    found = spaces(precision)
    memory = memory_of(found)
    before = bits(found, memory)
    snapshot = Snapshot(tmp_path / "run" / ".best", found, memory)
    snapshot.take()
    for tensor in [*(t for space in found for t in space.stored().values()), *memory.tensors.values()]:
        tensor.add_(1)
    assert not any(torch.equal(a, b) for a, b in zip(before, bits(found, memory), strict=True))
    with PeakBytes() as live:
        snapshot.restore()
    assert live.peak == 0
    assert all(torch.equal(a, b) for a, b in zip(before, bits(found, memory), strict=True))
    snapshot.remove()
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_leaves_the_older_snapshot_and_no_partial_file(tmp_path, monkeypatch):
    found = spaces("float32")
    snapshot = Snapshot(tmp_path / ".best", found, memory_of(found))
    snapshot.take()
    before = (tmp_path / ".best").read_bytes()
    with torch.no_grad():
        found[0].parameter.add_(1)

    def full(tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zerograd.journal.snapshot.tensor_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        snapshot.take()
    assert (tmp_path / ".best").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [".best"]


def test_a_snapshot_that_was_cut_short_is_refused(tmp_path):
    found = spaces("float32")
    snapshot = Snapshot(tmp_path / ".best", found, memory_of(found))
    snapshot.take()
    (tmp_path / ".best").write_bytes(b"short")
    with pytest.raises(OSError, match="was cut short"):
        snapshot.restore()
