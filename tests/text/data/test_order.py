"""The order in which training takes rows."""

from __future__ import annotations

from zerograd.text.data import order


def test_batches_cover_an_epoch_once_with_like_lengths():
    lengths = [(i * 37) % 101 for i in range(640)]
    dataset = order.batches(lengths, 16, seed=5)
    epoch = [next(dataset) for _ in range(40)]
    assert sorted(i for batch in epoch for i in batch) == list(range(640))
    padded = sum(16 * max(lengths[i] for i in batch) for batch in epoch)
    assert padded < 1.15 * sum(lengths)
    again = order.batches(lengths, 16, seed=5)
    assert [next(again) for _ in range(40)] == epoch
    following = [next(dataset) for _ in range(40)]
    assert following != epoch
    assert sorted(i for batch in following for i in batch) == list(range(640))


def test_fewer_examples_than_a_batch_make_one_batch():
    assert sorted(next(order.batches([3, 1, 2], 8, seed=0))) == [0, 1, 2]
