"""The tests: rooms as in `src/zerograd`, properties held over every method, and the oracles they compare with."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The repository."""
