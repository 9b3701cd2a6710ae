"""What imports what: circles between files, and imports that run back up. `python -m tests.imports [SRC]` prints the counts."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests import ROOT

_CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]

LAYERS = [re.split(r" [|:] ", row) for contract in _CONTRACTS if contract["type"] == "layers" for row in contract["layers"]]
"""Folders of the package from the top down, as the contract in pyproject.toml has them."""

Graph = Mapping[str, frozenset[str]]
"""The modules that each module imports."""


def imports(package: Path) -> Graph:
    """The imports between a package's modules, those inside functions and for type checkers too."""
    files = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    return {name: frozenset(_imported(path, modules)) - {name} for name, path in modules.items()}


def _imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from (name for name in (whole if whole in modules else node.module,) if name in modules)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements in a node, at every depth; no import stands within an expression."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            yield from _statements(child)


def circles(graph: Graph) -> list[list[str]]:
    """The sets of modules that reach each other, of two modules and more: strongly connected components."""
    reached = {module: _reachable(graph, module) for module in graph}
    found = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return sorted(sorted(circle) for circle in found if len(circle) > 1)


def _reachable(graph: Graph, start: str) -> frozenset[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for module in graph[ahead.pop()] - seen:
            seen.add(module)
            ahead.append(module)
    return frozenset(seen)


def upward(graph: Graph) -> list[tuple[str, str]]:
    """(module, what it imports) where the folder of the second stands above that of the first in LAYERS."""
    depth = {folder: row for row, folders in enumerate(LAYERS) for folder in folders}

    def of(module: str) -> int | None:
        return depth.get(module.split(".")[1]) if "." in module else None

    pairs = [(module, other) for module, others in graph.items() for other in others]
    placed = [(pair, of(pair[0]), of(pair[1])) for pair in pairs]
    return sorted(pair for pair, ours, theirs in placed if ours is not None and theirs is not None and theirs < ours)


if __name__ == "__main__":
    graph = imports(Path(sys.argv[1] if len(sys.argv) > 1 else "src/zerograd"))
    print(f"{len(graph)} files, {sum(map(len, graph.values()))} imports between them")
    print(f"circles: {len(circles(graph))}", *(f"  {' '.join(circle)}" for circle in circles(graph)), sep="\n")
    print(f"upward: {len(upward(graph))}", *(f"  {module} -> {other}" for module, other in upward(graph)), sep="\n")
