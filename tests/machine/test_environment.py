"""What is said to the system before torch is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zerograd.machine import environment


@pytest.mark.full
def test_the_environment_is_prepared_before_torch_is_imported():
    code = "import os, sys, zerograd.cli as c; c.environment.prepare(); print('torch' in sys.modules, os.environ)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("False")
    assert all(f"'{name}': '" in said for name in environment.SETTINGS)
