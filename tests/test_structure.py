"""The structure of the code: which way imports point, where they stand, and how few exceptions there are."""

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# An import may point to a folder of the same or of a lower rank.
RANKS = {"common": 0, "data": 1, "main": 2, "demo": 3, "tool": 4, "docs": 4, "tests": 5}
LATE_IMPORTS = 25  # imports inside functions
PATH_EDITS = 7  # scripts that put the repository root on `sys.path`
TYPE_IGNORES = 15
TOOL_SHARE = 0.6  # lines of tool/ for each line of what it serves


@cache
def sources() -> dict[str, ast.Module]:
    """Path from the root -> syntax tree, of every Python file under version control."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: ast.parse((ROOT / name).read_text()) for name in listed.stdout.split() if (ROOT / name).exists()}


def outside_tests() -> dict[str, ast.Module]:
    return {name: tree for name, tree in sources().items() if not name.startswith("tests/")}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree: ast.AST) -> list[tuple[str, int]]:
    """(module, line) of every import; `from a import b` is a.b where that is a module of ours, else a."""
    modules = {module_name(path) for path in sources()}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole if whole in modules else node.module or "", node.lineno))
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
    return found


def test_imports_point_one_way() -> None:
    """tool, demo -> main -> data -> common, and never back."""
    upward = [
        f"{path}:{line} imports {name}"
        for path, tree in sources().items()
        for name, line in imported(tree)
        if RANKS.get(name.split(".")[0], -1) > RANKS.get(path.split("/")[0], 9)
    ]
    assert not upward


def test_no_circles() -> None:
    modules = {module_name(path): path for path in sources()}
    edges = defaultdict(set)
    for module, path in modules.items():
        edges[module] = {name for name, _ in imported(sources()[path]) if name in modules and name != module}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for name in edges[module]:
                visit(name, (*way, module))
            done.add(module)

    for module in modules:
        visit(module, ())


def test_imports_stand_on_top() -> None:
    late = [
        f"{path}:{node.lineno}"
        for path, tree in outside_tests().items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(set(late)) <= LATE_IMPORTS, late


@pytest.mark.parametrize(
    ("text", "limit"),
    [("sys.path.insert", PATH_EDITS), ("# type: ignore", TYPE_IGNORES), ("noqa: E402", 0), ("TYPE_CHECKING", 0)],
)
def test_few_exceptions(text: str, limit: int) -> None:
    found = [
        f"{path}:{number}"
        for path in outside_tests()
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if text in line
    ]
    assert len(found) <= limit, found


def test_what_serves_does_not_outgrow_what_it_serves() -> None:
    def lines(*folders: str) -> int:
        return sum(len((ROOT / path).read_text().splitlines()) for path in sources() if path.split("/")[0] in folders)

    assert lines("tool") <= TOOL_SHARE * lines("common", "data", "main", "demo")


def test_mypy_accepts_the_library() -> None:
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "common", "data", "main", "demo"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
