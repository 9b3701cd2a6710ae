"""A tiny model, a small task, and runs that were not cut off."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.tune.straight import model_folder

    return model_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def small_task():
    from tests.tune.straight import small_tasks

    with small_tasks():
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    from tests.tune.straight import straight_runs

    return straight_runs(tmp_path_factory.getbasetemp())
