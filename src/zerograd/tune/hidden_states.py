"""A cache of the hidden states below the first trained layer, in the run's folder while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zerograd.evaluate.hidden_cache import HiddenCache
from zerograd.journal.header import read_header
from zerograd.tune.folder import JOURNAL, free_disk_bytes
from zerograd.tune.setup import Setup


@contextlib.contextmanager
def cached_hidden_states(setup: Setup) -> Iterator[None]:
    """Give the scorer a cache of hidden states for the length of the block, if there are layers below the first trained
    one and the disk has room.
    """
    setup.scorer.cache = _cache(setup)
    try:
        yield
    finally:
        if setup.scorer.cache is not None:
            setup.scorer.cache.close()


def _cache(setup: Setup) -> HiddenCache | None:
    scorer, train = setup.scorer, setup.task.train
    if scorer.prefix is None or scorer.layout is None or scorer.device.type != "cpu":
        return None
    if setup.resumes:
        is_cached = bool(read_header(setup.folder / JOURNAL).get("cache"))  # the decision of the run's first start
    else:
        is_cached = scorer.hidden_bytes(train) <= free_disk_bytes(setup.folder) // 4
    about = f"{setup.identity} {scorer.prefix.name}"
    return HiddenCache(setup.folder, about, setup.resumes) if is_cached else None
