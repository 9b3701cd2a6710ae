"""The quick tier's guard fails a test that takes too long, and leaves the full tests out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

TESTS = """
import time
import pytest

def spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@pytest.fixture
def prepared():
    spend(1.2)

def test_slow():
    spend(1.2)

def test_slow_to_prepare(prepared):
    pass

@pytest.mark.full
def test_full():
    spend(1.2)
"""


def ran(folder: Path, marks: str, *more: str) -> str:
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-m", marks, *more, str(folder / "test_it.py")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.full
def test_a_quick_test_may_not_take_a_second_of_cpu(tmp_path):
    said = ran(tmp_path, "not full", "-n", "1")
    assert "test_slow took 1.2 s of CPU, and a quick test may take 1: make it smaller, or mark it full" in said
    assert "1 failed, 1 passed" in said
    assert "quick tier: 1 s of CPU in 2 tests" in said


@pytest.mark.full
def test_a_full_test_may_take_longer(tmp_path):
    assert "3 passed" in ran(tmp_path, "")
