"""A model in a folder."""

from __future__ import annotations

import pytest

from tests.planner.described import saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("plan") / "llama")
