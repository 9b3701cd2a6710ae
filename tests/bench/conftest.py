"""The tiny model of the command line's tests."""

from tests.cli.conftest import folder as folder
