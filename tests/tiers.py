"""Parameters of which some are in the quick tier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

full = pytest.mark.full


def tiers(argument: str, quick: Iterable[Any], more: Iterable[Any], **how: Any) -> pytest.MarkDecorator:
    """An argument's values: those of the quick tier, and those of the full one."""
    return pytest.mark.parametrize(argument, [*quick, *(pytest.param(value, marks=full) for value in more)], **how)
