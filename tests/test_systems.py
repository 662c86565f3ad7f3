"""Other systems than Linux, by construction: nothing of POSIX is assumed, and an Apple GPU gets no float64."""

import json
import ntpath
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path, PureWindowsPath

import pytest
import torch
from pretended_device import Refused, apple_gpu
from test_train import options, toy  # noqa: F401 - a fixture

from common.devices import parse_devices
from common.errors import UserError
from data import store
from data.reading import path_in
from demo import demo
from main import test, train

ROOT = Path(__file__).resolve().parent.parent
# Runs at the start of every interpreter, loader workers included.
HIDE_POSIX = f"""
import builtins, multiprocessing, os, signal, sys, types
import filelock  # has its own way on each system; without fcntl here it would find none

ROOT = {str(ROOT)!r} + os.sep
OURS = tuple(ROOT + name for name in ("common", "data", "demo", "main", "tool", "quickstart"))
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("SIGHUP", "SIGKILL", "SIGALRM"):
    delattr(signal, name)
multiprocessing.set_start_method("spawn")


class Without(types.ModuleType):
    def __init__(self, module, hidden, **other):
        super().__init__(module.__name__)
        vars(self).update(other, module=module, hidden=hidden)

    def __getattr__(self, name):
        if name in self.hidden:
            raise AttributeError(f"module {{self.__name__!r}} has no attribute {{name!r}}")
        return getattr(self.module, name)

    def __setattr__(self, name, value):
        setattr(self.module, name, value)


def fsync(descriptor):
    os.write(descriptor, b"")  # as on Windows, EBADF if the file is open for reading alone
    os.fsync(descriptor)


POSIX = "fork forkpty killpg getpgid getpgrp setsid setpgid statvfs sched_getaffinity sysconf getuid geteuid getgid"
POSIX += " uname mkfifo O_NOFOLLOW O_DIRECTORY O_NONBLOCK register_at_fork wait4 getloadavg fchmod chown umask"
STAND_INS = {{
    "os": Without(os, POSIX.split(), name="nt", fsync=fsync),
    "sys": Without(sys, (), platform="win32"),
}}
load = builtins.__import__


def load_for_ours(name, globals=None, locals=None, fromlist=(), level=0):
    file = str((globals or {{}}).get("__file__", ""))
    if file.startswith(OURS):
        if name in ("pwd", "grp", "termios", "pty", "syslog"):
            raise ImportError(name)
        if name in STAND_INS:
            return STAND_INS[name]
    return load(name, globals, locals, fromlist, level)


builtins.__import__ = load_for_ours
"""
IMPORT_ALL = """
import os, pkgutil, importlib
import common, data, demo, main, tool.toy
for package in (common, data, demo, main, tool.toy):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
from common import distributed
assert distributed.os.name == "nt" and distributed.sys.platform == "win32" and not hasattr(distributed.os, "fork")
assert [number.name for number in distributed.STOP_SIGNALS] == ["SIGINT", "SIGTERM"]
assert distributed.usable_cores() == os.cpu_count()
"""


@pytest.fixture(scope="module")
def without_posix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of interpreters in which POSIX is hidden."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDE_POSIX)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *command: object) -> str:
    command = (sys.executable, *map(str, command))
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_no_module_needs_posix(without_posix: dict[str, str]) -> None:
    """All modules of demo, page, export, training, test and toy data import where POSIX is hidden."""
    run(without_posix, "-c", IMPORT_ALL)
    for code, message in (("import os; os.fork()", "no attribute 'fork'"), ("import fcntl", "import of fcntl halted")):
        with pytest.raises(AssertionError, match=message):
            run(without_posix, "-c", f"exec({code!r}, {{'__file__': {str(ROOT / 'common' / 'x.py')!r}}})")


def test_training_test_and_demo_without_posix(
    without_posix: dict[str, str],
    toy: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    """Two steps with a spawned loader worker, the test of what they trained, and the demo of it on a toy photo."""
    more = ("--end_epoch", "1", "--train_batch_size", "4", "--workers", "1")
    run(without_posix, "main/train.py", *options(toy, tmp_path, *more))
    losses = [json.loads(line) for line in (tmp_path / "log" / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and losses[0]["total"] > 0
    checkpoint = tmp_path / "model_dump" / "snapshot_0.pth"
    common = ("--gpu", "cpu", "--mano", toy / "mano", "--checkpoint", checkpoint, "--output", tmp_path)
    test = run(without_posix, "main/test.py", *common, "--data", toy / "data", "--testset", "InterHand26M")
    assert "MRRPE: " in test
    photo = next((toy / "data" / "MSCOCO").rglob("*.jpg"))
    run(without_posix, "demo/demo.py", *common, "--input", photo)
    assert list(tmp_path.rglob(f"{photo.stem}.json"))


def test_paths_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drive letters and backslashes: no name leads out of a folder, and files may lie on several drives."""
    for name in ("C:x.jpg", "C:\\x.jpg", "c:/x.jpg", "\\x.jpg", "\\\\server\\share\\x.jpg", "a\\..\\..\\x.jpg"):
        with pytest.raises(UserError, match="does not lie in"):
            path_in(Path("data"), name)
    folders = [PureWindowsPath(path) for path in ("C:\\a\\b", "C:\\a\\c\\d", "D:\\a", "\\\\server\\share\\e")]
    assert demo._below_common(folders[:2]) == [("b",), ("c", "d")]
    assert demo._below_common(folders) == [("a", "b"), ("a", "c", "d"), ("a",), ("e",)]
    monkeypatch.setattr(os.path, "relpath", ntpath.relpath)
    monkeypatch.setattr(os.path, "abspath", ntpath.abspath)
    paths = [PureWindowsPath(path) for path in ("C:\\data\\cache", "C:\\data\\a.json", "D:\\data\\a.json")]
    assert [store._path_from(paths[0], path) for path in paths[1:]] == ["..\\a.json", "D:\\data\\a.json"]


def test_the_apple_gpu_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mps` is a device where PyTorch has one, and one line elsewhere; it is never the default."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="--gpu mps: PyTorch finds no Apple GPU here"):
        parse_devices("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert parse_devices(" MPS ") == [torch.device("mps")]
    assert torch.device("mps") not in parse_devices(None)


def test_the_apple_gpu_gets_no_float64(
    toy: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training, test and demo on a pretended one, which refuses float64 and operations across devices."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    losses, checkpoint = {}, tmp_path / "cpu" / "model_dump" / "snapshot_0.pth"
    for device in ("cpu", "mps"):
        output = tmp_path / device
        more = ("--gpu", device, "--end_epoch", "1", "--train_batch_size", "4", "--validate_every", "1")
        common = ("--gpu", device, "--mano", toy / "mano", "--checkpoint", checkpoint)
        photo = next((toy / "data" / "MSCOCO").rglob("*.jpg"))
        with apple_gpu() if device == "mps" else nullcontext(set()) as operations:
            for main, arguments in (
                (train.main, options(toy, output, *more)),
                (test.main, (*common, "--data", toy / "data", "--output", output, "--testset", "InterHand26M")),
                (demo.main, (*common, "--output", output, "--input", photo)),
            ):
                monkeypatch.setattr(sys, "argv", ["main", *map(str, arguments)])
                assert not main()
        losses[device] = [json.loads(line)["total"] for line in (output / "log" / "losses.jsonl").open()]
    assert {"aten.convolution.default", "aten.convolution_backward.default"} <= operations
    assert losses["mps"] == pytest.approx(losses["cpu"], rel=1e-5)
    with apple_gpu():
        on_device = torch.ones(2).to("mps")
        for refused in (on_device.double, lambda: on_device + torch.ones(2)):
            with pytest.raises(Refused):
                refused()


@pytest.mark.parametrize("program", ["main/train.py", "main/test.py", "-cimport demo.predictor"])
def test_what_an_apple_gpu_lacks_falls_to_the_cpu(program: str, tmp_path: Path) -> None:
    """PyTorch reads this variable when it loads, and then names the first operation that it moves to the CPU."""
    (tmp_path / "torch.py").write_text(
        "import os\nraise SystemExit('fallback ' + os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK', 'unset'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "fallback 1" in done.stderr
