"""The identity of a base, and the table of its tensors."""

from __future__ import annotations

import pytest
import torch

import zerograd as zg
from tests.oracles.methods import Net
from zerograd import journal
from zerograd.journal import (
    WrongBase,
)


def test_a_base_is_known_by_every_bit_of_it():
    first = journal.identity(Net())
    assert first == journal.identity(Net())
    others = []
    for change in range(3):
        net = Net()
        with torch.no_grad():
            if change == 0:
                net.hidden.weight[1, 2] += 1e-7
            elif change == 1:
                net.hidden.weight[0, 0] = -0.0
            else:
                net.to(torch.bfloat16)
        others.append(journal.identity(net))
    assert len({first, *others}) == 4
    net = Net()
    net.register_buffer("seen", torch.zeros(2))
    assert journal.identity(net) != first


def test_a_table_of_other_tensors_is_refused():
    opt = zg.optim.MeZO(Net())
    table = journal.table(opt.spaces, opt.group_of)
    assert journal.fit(opt.spaces, table, 1) == [0] * len(opt.spaces)
    with pytest.raises(WrongBase, match="the journal trains extra, which this base has not"):
        journal.fit(opt.spaces, [*table, table[0] | {"id": 99, "name": "extra"}], 1)
    with pytest.raises(WrongBase, match=r"this base trains norm.weight, which the journal has not"):
        journal.fit(opt.spaces, [row for row in table if row["name"] != "norm.weight"], 1)
    with pytest.raises(WrongBase, match=r"embed.weight is 5 x 5 in float32 in the journal and 11 x 6 in float32"):
        journal.fit(opt.spaces, [table[0] | {"shape": [5, 5]}, *table[1:]], 1)
    for wrong in (
        None,
        [1],
        [{"id": 0}],
        [table[0] | {"scale": "1"}],
        [table[0] | {"group": 3}],
        [table[0] | {"scale": float("inf")}],
    ):
        with pytest.raises(ValueError, match="the header"):
            journal.fit(opt.spaces, wrong, 1)
