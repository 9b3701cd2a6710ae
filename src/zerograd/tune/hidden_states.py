"""The hidden states of layers that training leaves alone, kept in a run's folder while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zerograd.evaluate.hidden_cache import HiddenCache
from zerograd.journal.header import read_header
from zerograd.tune.folder import JOURNAL, free_disk_bytes
from zerograd.tune.setup import Setup


@contextlib.contextmanager
def hidden_states_kept(setup: Setup) -> Iterator[None]:
    """Give the scorer a cache of hidden states for the length of the block, where there are such layers and the disk has room."""
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
        is_kept = bool(read_header(setup.folder / JOURNAL).get("cache"))  # as it was decided when the run began
    else:
        is_kept = scorer.hidden_bytes(train) <= free_disk_bytes(setup.folder) // 4
    about = f"{setup.identity} {scorer.prefix.name}"
    return HiddenCache(setup.folder, about, setup.resumes) if is_kept else None
