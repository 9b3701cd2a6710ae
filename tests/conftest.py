"""What must be said before anything is imported: Triton's interpreter where there is no GPU, and that no hub is asked. That no test
is timed by Hypothesis, and that Ctrl-C is one even where whoever started the tests has switched it off.

And the guard of the quick tier: a test that takes more than `LIMIT` seconds of CPU fails, and the total is said at the end.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from numba.core import event

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
settings.register_profile("full", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=30)
signal.signal(signal.SIGINT, signal.default_int_handler)

LIMIT = 1.0
"""Seconds of CPU of a quick test, of this process and of those that it starts; its fixtures apart, and what is done `Once`."""

WHOLE_FILE = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.full\b", re.MULTILINE)


@pytest.fixture
def threads(request):
    """As many threads of torch's as the parameter says."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# The quick tier.


def is_quick(config: pytest.Config) -> bool:
    return config.option.markexpr == "not full"


def cpu() -> float:
    """Seconds, of this process and of those that it started and waited for."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


class Once(event.Listener):
    """Seconds of CPU of what a process does once: what it imports, and what Numba compiles or reads from its cache."""

    def __init__(self) -> None:
        self.seconds, self.began = 0.0, list[float]()

    def on_start(self, event: event.Event | None = None) -> None:
        self.began.append(time.process_time())

    def on_end(self, event: event.Event | None = None) -> None:
        began = self.began.pop()
        if not self.began:
            self.seconds += time.process_time() - began

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*given: Any) -> Any:
            self.on_start()
            try:
                return work(*given)
            finally:
                self.on_end()

        return timed


once = Once()
totals = {"tests": 0, "seconds": 0.0, "processes": 0.0}


def pytest_configure(config: pytest.Config) -> None:
    event.register("numba:compile", once)
    importlib._bootstrap._find_and_load = once.around(importlib._bootstrap._find_and_load)  # of modules that are not there yet
    settings.load_profile("quick" if is_quick(config) else "full")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file whose tests are all full is not imported, but where it is named."""
    named = any(collection_path == Path(name.partition("::")[0]).resolve() for name in config.args)
    if is_quick(config) and not named and collection_path.suffix == ".py" and WHOLE_FILE.search(collection_path.read_text()):
        return True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before, others = cpu(), once.seconds
    try:
        return (yield)
    finally:
        item.user_properties.append(("cpu", cpu() - before - (once.seconds - others)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    report = yield
    spent = dict(item.user_properties).get("cpu", 0.0)
    if report.when == "call" and report.passed and is_quick(item.config) and spent > LIMIT:
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {spent:.1f} s of CPU, and a quick test may take {LIMIT:g}: make it smaller, or mark it full"
        )
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        totals["tests"] += 1
        totals["seconds"] += dict(report.user_properties).get("cpu", 0.0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cpu"] = cpu()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    totals["processes"] += getattr(node, "workeroutput", {}).get("cpu", 0.0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    whole = totals["processes"] + time.process_time() if totals["processes"] else cpu()  # workers are children too
    name = "quick tier" if is_quick(config) else "tests"
    terminalreporter.write_line(
        f"{name}: {totals['seconds']:.0f} s of CPU in {totals['tests']} tests, {whole:.0f} s with start, collection and fixtures"
    )
