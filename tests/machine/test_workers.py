"""Threads that share work: every item once, errors raised, torch's own number left alone."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from zerograd.machine import workers

two_threads = pytest.mark.parametrize("threads", [2], indirect=True)


@two_threads
@pytest.mark.usefixtures("threads")
def test_workers_do_every_item_once_each_on_one_thread_and_leave_torchs_number_alone():
    done, threads, names = [], set(), set()

    def work(item: int) -> None:
        done.append(item)
        threads.add(torch.get_num_threads())
        names.add(threading.current_thread().name)

    workers.each(work, range(100))
    assert sorted(done) == list(range(100))
    assert threads == {1}
    assert all(name.startswith("zerograd") for name in names)
    assert torch.get_num_threads() == 2
    fresh: list[int] = []
    other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert fresh == [2]


def test_on_one_thread_work_is_done_here(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    names = set()
    workers.each(lambda item: names.add(threading.current_thread().name), range(3))
    assert names == {threading.current_thread().name}


@two_threads
@pytest.mark.usefixtures("threads")
def test_an_error_in_a_worker_is_raised_and_ends_the_rest():
    done = []

    def work(item: int) -> None:
        if item == 3:
            raise KeyError("three")
        time.sleep(0.001)
        done.append(item)

    with pytest.raises(KeyError, match="three"):
        workers.each(work, range(10_000))
    assert len(done) < 9_999  # all the others would take ten seconds
