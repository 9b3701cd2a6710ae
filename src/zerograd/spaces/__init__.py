"""Spaces: a trained tensor, however it is stored."""

from zerograd.spaces.base import Rows, Space
from zerograd.spaces.collect import PRECISIONS, collect

__all__ = ["PRECISIONS", "Rows", "Space", "collect"]
