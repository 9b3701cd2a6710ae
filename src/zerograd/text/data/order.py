"""The order of the data: batches of similar lengths, a function of the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zerograd.noise import ORDER, Address, stream

POOL_BATCHES = 32
"""Batches of a pool, within which examples are sorted by length: enough for little padding, few enough to stay random.
"""


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count), sorted by addressed random words."""
    keys = [stream(Address(seed, epoch, 0, i, ORDER)) for i in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of `size` indices of an epoch; fewer than `size` examples make one batch.

    The epoch is shuffled and cut into pools. Each pool is sorted by length and cut into batches; an incomplete batch is
    dropped. The batches are shuffled.
    """
    size = min(size, len(lengths))
    order = shuffled(len(lengths), seed, 2 * epoch)
    batches: list[list[int]] = []
    for first in range(0, len(order), POOL_BATCHES * size):
        pool = sorted(order[first : first + POOL_BATCHES * size], key=lengths.__getitem__)
        batches += [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
    return [batches[i] for i in shuffled(len(batches), seed, 2 * epoch + 1)]


def batches(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of `size` indices, every epoch in a new order."""
    epoch = 0
    while True:
        yield from epoch_batches(lengths, size, seed, epoch)
        epoch += 1
