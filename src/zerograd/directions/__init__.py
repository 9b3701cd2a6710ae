"""Directions: what z is in a space, drawn from addresses."""

from zerograd.directions.directions import Directions, Draws
from zerograd.directions.family import Activity, Dense, Family, Modulation
from zerograd.directions.low_rank import LowRank
from zerograd.directions.source import Source

__all__ = ["Activity", "Dense", "Directions", "Draws", "Family", "LowRank", "Modulation", "Source"]
