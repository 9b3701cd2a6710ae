"""Provenance of a measurement: machine, versions and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def provenance() -> dict[str, Any]:
    """Machine, versions, commit, and whether files differ from the commit; changed benchmark results do not count.

    The commit is empty for a package outside a repository.
    """
    names = ("torch", "numpy", "numba", "transformers", "peft")
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    tracked = bool(_git("ls-files", Path(__file__).name))  # an environment may be inside another repository
    return {
        "machine": {"cpu": model, "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in names},
        "commit": _git("rev-parse", "HEAD") if tracked else "",
        "dirty": tracked
        and bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")),
    }


def load() -> float | None:
    """The system's load average of the last minute; None if the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=HERE).stdout.strip()
    except OSError:
        return ""


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
