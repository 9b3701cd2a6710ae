"""Batches of any structure: their examples, and parts of them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

from zerograd.evaluate import batch as batches
from zerograd.evaluate.tensors import tensors


class Pair(NamedTuple):
    left: torch.Tensor
    right: Any


@dataclasses.dataclass(frozen=True)
class Record:
    ids: torch.Tensor
    tags: list[str]
    width: int
    total: int = dataclasses.field(init=False, default=4)


def test_batches_of_any_structure_expand() -> None:
    ids, rows = torch.arange(6).view(3, 2), torch.arange(6)
    batch = {
        "record": Record(ids, ["a", "b", "c"], 7),
        "pair": Pair(rows, [ids, (rows, None)]),
        "scalar": torch.tensor(2.0),
        "class weights": torch.tensor([1.0, 2.0]),
        "words": ["x", "y", "z"],
        "size": (224, 224),
        "name": "prompt",
        "number": 0.5,
    }
    assert batches.examples({k: v for k, v in batch.items() if k != "class weights"}) == 3
    assert len(list(tensors(batch))) == 6
    twice, held = batches.part(batch, 3, 0, 3, copies=2)
    assert twice["record"] == dataclasses.replace(batch["record"], ids=twice["record"].ids, tags=["a", "b", "c"] * 2)
    assert torch.equal(twice["record"].ids, ids.repeat(2, 1))
    assert isinstance(twice["pair"], Pair)
    assert torch.equal(twice["pair"].left, rows.repeat(2))
    assert torch.equal(twice["pair"].right[0], ids.repeat(2, 1))
    assert twice["pair"].right[1][1] is None
    assert (twice["words"], twice["name"], twice["number"], float(twice["scalar"])) == (["x", "y", "z"] * 2, "prompt", 0.5, 2.0)
    assert twice["size"] == (224, 224)
    assert [len(t) for t in held] == [6, 12, 6, 12]
    second, _ = batches.part(batch, 3, 1, 2)
    assert second["size"] == (224, 224)
    assert torch.equal(second["record"].ids, ids[1:2])
    assert torch.equal(second["pair"].left, rows[2:4])
    assert (second["words"], second["record"].tags, second["name"]) == (["y"], ["b"], "prompt")
    assert torch.equal(batch["record"].ids, torch.arange(6).view(3, 2))


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"a": torch.zeros(4), "b": torch.zeros(6)}, "4 and 6"),
        ({"a": torch.zeros(0, 3)}, "0 examples"),
        ({"a": torch.tensor(1.0), "b": "text"}, "no tensor"),
    ],
)
def test_batches_without_examples_are_refused(batch: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        batches.examples(batch)
