"""What the source may never do: execute the content of a file, or pass a text to a shell. Read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("common", "data", "demo", "docs", "main", "tool")
# Tests write hostile files, and so may name more; they are held to the rest.
TEST_FOLDERS = ("tests",)

# Functions that load programs or run them, under any local name.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load", "joblib.load"),
    *("shelve.open", "marshal.load", "marshal.loads", "yaml.load", "yaml.unsafe_load", "jsonpickle.decode"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput", "tempfile.mktemp"),
    *("torch.hub.load", "torch.package.PackageImporter", "torch.jit.load", "pandas.read_pickle"),
    *("shutil.unpack_archive", "urllib.request.urlretrieve", "telnetlib.Telnet", "xml.etree.ElementTree.parse"),
}
RUNNING = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output")


def sources(folders: tuple[str, ...]) -> list[Path]:
    below = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return sorted(ROOT.glob("*.py")) + below


def faults(source: str) -> list[str]:
    """What a source does that it must not, as 'line: what'."""
    tree = ast.parse(source)
    known = dict(_imports(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _name(node.func, known)
            found += [f"{node.lineno}: {fault}" for fault in _call_faults(name, node)]
    return found


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name -> what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _name(node: ast.expr, known: dict[str, str]) -> str:
    """np.load -> numpy.load; a method of something else -> .method."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, known)}.{node.attr}"
    return ""


def _call_faults(name: str, call: ast.Call) -> Iterator[str]:
    options = {keyword.arg: keyword.value for keyword in call.keywords}

    def says(option: str, value: object) -> bool:
        given = options.get(option)
        return isinstance(given, ast.Constant) and type(given.value) is type(value) and given.value == value

    if name in FORBIDDEN:
        yield name
    if name == "torch.load" and not says("weights_only", True):
        yield "torch.load without weights_only=True"
    if name == "numpy.load" and "allow_pickle" in options and not says("allow_pickle", False):
        yield "numpy.load with pickles"
    if "shell" in options and not says("shell", False):
        yield f"{name} with a shell"
    if name in RUNNING and call.args and isinstance(call.args[0], ast.Constant | ast.JoinedStr):
        yield f"{name} of a text instead of a list"
    if name.endswith(("tar.extractall", "tar.extract")) and not says("filter", "data"):
        yield f"{name} without filter='data'"
    if name.endswith((".load_state_dict_from_url", ".get_state_dict")) and not says("weights_only", True):
        yield f"{name} without weights_only=True"


def test_nothing_runs_what_it_reads():
    found = [f"{path.relative_to(ROOT)}:{fault}" for path in sources(FOLDERS) for fault in faults(path.read_text())]
    assert not found, "\n".join(found)
    assert len(sources(FOLDERS)) > 50  # the folders exist


def test_tests_run_no_shell():
    shells = [
        f"{path.name}:{fault}"
        for path in sources(TEST_FOLDERS)
        for fault in faults(path.read_text())
        if "shell" in fault or "os.system" in fault or "of a text" in fault
    ]
    assert shells == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "from pickle import loads as f\nf(b'')",
        "import pickle as p\np.Unpickler(file).load()",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load\nload(path, weights_only=flag)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "import subprocess\nsubprocess.run(f'rm {path}')",
        "import os\nos.system('ls')",
        "tar.extractall(folder)",
        "self.tar.extractall(folder, filter='fully_trusted')",
        "import yaml\nyaml.load(text)",
    ],
)
def test_what_is_forbidden_is_seen(source):
    assert faults(source)


def test_the_only_unpickler_names_what_it_allows():
    """`pickle` is imported by the one reader that lets no other class through, and by those who know its opcodes."""
    users = [
        path.relative_to(ROOT).as_posix()
        for path in sources(FOLDERS)
        if any(name == "pickle" for name in _modules(ast.parse(path.read_text())))
    ]
    allowed = {
        "common/nets/mano_files.py",  # STOP
        "common/utils/pickles.py",  # the restricted reader
        "docs/onnx_example.py",  # a restricted reader of its own, as it stands alone
        "tool/toy/standin_hand.py",  # writes
    }
    assert set(users) <= allowed, users
    tree = ast.parse((ROOT / "common/utils/pickles.py").read_text())
    readers = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "Unpickler" in ast.unparse(node)]
    assert len(readers) == 1 and "find_class" in {part.name for part in readers[0].body if hasattr(part, "name")}


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
