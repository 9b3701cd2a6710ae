"""Snapshots: the bits come back, an interrupted one leaves the older, and no copy is held."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from zerograd.evaluate.micro_batch import Live
from zerograd.journal.snapshot import Snapshot
from zerograd.optim.momentum import MomentumState
from zerograd.spaces import weights


def slots(storage: str) -> list[weights.Slot]:
    torch.manual_seed(0)
    dtype = torch.float32 if storage == "float32" else torch.bfloat16
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)).to(dtype)
    found = weights.collect(model, storage)
    for slot in found:
        if slot.remainder is not None:
            slot.remainder.random_(-100, 100)
    return found


def optimiser(found: list[weights.Slot]) -> Any:
    """What a snapshot sees of one that keeps a State."""
    held = MomentumState(0.9)
    held.begin(found, 1)
    return SimpleNamespace(slots=found, held=held)


def bits(found: list[weights.Slot]) -> list[torch.Tensor]:
    held = [tensor for slot in found for tensor in (slot.parameter.detach(), slot.remainder) if tensor is not None]
    return [tensor.clone() for tensor in held]


@pytest.mark.parametrize("storage", ["float32", "split", "bfloat16"])
def test_every_bit_comes_back(tmp_path, storage):
    found = slots(storage)
    before = bits(found)
    snapshot = Snapshot(tmp_path / "run" / ".best", optimiser(found))
    snapshot.take()
    for slot in found:
        with torch.no_grad():
            slot.parameter.add_(1)
        if slot.remainder is not None:
            slot.remainder.zero_()
    with Live() as live:
        snapshot.restore()
    assert live.peak == 0
    assert all(torch.equal(a, b) for a, b in zip(before, bits(found), strict=True))
    snapshot.remove()
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_leaves_the_older_snapshot_and_no_partial_file(tmp_path, monkeypatch):
    found = slots("float32")
    snapshot = Snapshot(tmp_path / ".best", optimiser(found))
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
    found = slots("float32")
    snapshot = Snapshot(tmp_path / ".best", optimiser(found))
    snapshot.take()
    (tmp_path / ".best").write_bytes(b"short")
    with pytest.raises(OSError, match="was cut short"):
        snapshot.restore()
