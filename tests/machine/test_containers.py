"""Memory that a container's limit leaves."""

from __future__ import annotations

import pytest

from zerograd.machine import memory
from zerograd.planner import machine

GROUPED = {
    "version 2": ("0::/a/b\n", {"a/memory.max": "3000000", "a/memory.current": "1000000", "a/b/memory.max": "max"}),
    "version 2, files forgotten": (
        "0::/\n",
        {"memory.max": "3000000", "memory.current": "2500000", "memory.stat": "anon 1\ninactive_file 1500000\n"},
    ),
    "version 1": (
        "5:cpu:/x\n4:memory:/of/the/host\n0::/\n",
        {"memory/memory.limit_in_bytes": "3000000", "memory/memory.usage_in_bytes": "1000000"},
    ),
}


@pytest.mark.parametrize("case", GROUPED)
def test_a_containers_limit_is_what_can_be_had(case, tmp_path, monkeypatch):
    said, files = GROUPED[case]
    for name, text in ({"proc/self/cgroup": said, "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8000 kB\n"} | files).items():
        path = tmp_path / name if name.startswith("proc") else tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    there = tmp_path / "proc", tmp_path / "groups"
    assert memory.container(*there) == [(3_000_000, 2_000_000)]
    assert memory.host_bytes(*there) == 2_000_000
    monkeypatch.setattr(memory, "container", lambda *given: [(3_000_000, 2_000_000)])
    assert machine._memory("cpu") == (3_000_000, 2_000_000)


def test_without_a_limit_the_machines_memory_can_be_had(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:memory:/a\n0::/a\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8000 kB\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("4096")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.host_bytes(tmp_path, tmp_path) == 8000 * 1024
    assert memory.host_bytes(tmp_path / "nowhere", tmp_path) is None
