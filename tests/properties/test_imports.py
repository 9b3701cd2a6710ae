"""Imports go down, from the command line to the ground, and run in no circle."""

from __future__ import annotations

from tests import ROOT
from tests.imports import circles, imports, upward


def test_imports_of_the_package_go_down_and_run_in_no_circle():
    graph = imports(ROOT / "src" / "zerograd")
    assert len(graph) > 100
    assert circles(graph) == []
    assert upward(graph) == []


def test_a_circle_and_an_upward_import_are_seen_wherever_they_stand(tmp_path):
    package = tmp_path / "zerograd"
    files = {
        "__init__": "",
        "noise/__init__": "",
        "noise/a": "def later():\n    from zerograd.noise import b\n",
        "noise/b": "import zerograd.noise.c",
        "noise/c": "from zerograd.noise.a import later",
        "text/__init__": "from zerograd.noise import a",
        "machine/d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zerograd.noise.a import later",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text)
    graph = imports(package)
    assert circles(graph) == [["zerograd.noise.a", "zerograd.noise.b", "zerograd.noise.c"]]
    assert upward(graph) == [("zerograd.machine.d", "zerograd.noise.a")]
