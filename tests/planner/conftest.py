"""A model in a folder."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.planner.described import saved

    return saved(tmp_path_factory.mktemp("plan") / "llama")
