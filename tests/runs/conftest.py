"""Runs that were not cut off, as the tests of resuming have them."""

from tests.tune.conftest import folder as folder
from tests.tune.conftest import small_task as small_task
from tests.tune.conftest import straight as straight
