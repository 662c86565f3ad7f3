"""Faults from outside: signals, killed workers, lack of memory or room, folders of others, clocks that jump."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError, explain_failure, one_line
from common.utils.files import atomic_write, make_folder, write_json
from data.dataset import init_worker, unwrap_worker_errors
from data.store import open_store
from tests.faults import fault_campaign, patience
from tests.faults.kill_test import compare
from tool.toy.formats import toy_folder

ROOT = Path(__file__).resolve().parent.parent


# ---- How scripts end ----


def run_script(code: str, **more) -> subprocess.CompletedProcess:
    """A script whose main is `code`."""
    source = f"""
import os, sys, time
from common.errors import UserError, run_main
def main():
{chr(10).join("    " + line for line in code.splitlines())}
run_main(main)
"""
    more = {"stdout": subprocess.PIPE, **more}
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize(
    ("code", "exit_code", "says"),
    [
        ("raise UserError('no\\nsuch \\x1b[31m file \\udcff ü')", 2, "error: no\\nsuch \\x1b[31m file \\udcff ü\n"),
        ("bytearray(1 << 60)", 2, "error: out of memory"),
        (
            'raise RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory")',
            2,
            "error: out of memory",
        ),
        ("open('/nonexistent/a')", 2, "error: /nonexistent/a: No such file or directory\n"),
        ("raise KeyboardInterrupt", 130, "stopped\n"),
        ("os.kill(os.getpid(), 15)", 143, ""),
        ("os.kill(os.getpid(), 1)", 129, ""),
        ("return 1", 1, ""),
        ("assert os.environ['OPENCV_IO_MAX_IMAGE_PIXELS'] == str(1 << 28)", 0, ""),
    ],
)
def test_exit_codes(code, exit_code, says):
    """One line for what a user or the system causes."""
    done = run_script(code)
    assert done.returncode == exit_code and done.stderr.startswith(says) and done.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback ..."),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 1 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."),
    ],
)
def test_failures_of_the_machine_are_known(error):
    assert explain_failure(error) and explain_failure(RuntimeError("shapes do not match")) is None


def test_a_bug_keeps_its_traceback():
    done = run_script("1 / 0")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_output_that_cannot_be_written():
    """A full disk behind the output, a reader that has gone, no output at all."""
    with open("/dev/full", "w") as full:
        done = run_script("print('x')", stdout=full)
    assert done.returncode == 2 and done.stderr == "error: No space left on device\n"
    reading, writing = os.pipe()
    os.close(reading)
    done = run_script("for i in range(20_000): print(i)", stdout=writing)
    os.close(writing)
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_half_written_files_are_removed_when_a_script_is_terminated(tmp_path, number):
    code = f"""
from common.utils.files import atomic_path
with atomic_path({str(tmp_path / "a")!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), {int(number)})
    time.sleep(20)
"""
    assert run_script(code.strip()).returncode == 128 + number
    assert not list(tmp_path.iterdir())


def test_signals_that_are_ignored_stay_so():
    """As under nohup."""
    code = "os.kill(os.getpid(), 1); print('goes on')"
    done = run_script(code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert done.returncode == 0 and done.stdout == "goes on\n"


def test_names_of_files_in_json(tmp_path):
    """Names that are not UTF-8 come back as they are."""
    name = os.fsdecode(b"a\xff\n.jpg")
    write_json(tmp_path / "a.json", {"name": name})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"name": name}
    assert one_line("ü\u202e\ta\udcff") == "ü\\u202e\\ta\\udcff"


# ---- Loader workers ----


class Trouble(Dataset):
    """A sample ends the worker that makes it."""

    def __init__(self, trouble: str) -> None:
        self.trouble = trouble

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 5:
            if self.trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("sample 5: is broken")
        return torch.zeros(3)


def test_a_worker_that_meets_a_broken_sample():
    loader = DataLoader(Trouble("broken"), batch_size=2, num_workers=1, worker_init_fn=init_worker)
    with pytest.raises(UserError, match="^sample 5: is broken$"):
        list(unwrap_worker_errors(loader))


def test_a_worker_that_is_killed():
    """PyTorch raises its error wherever the program just is, and so not in these tests' own process."""
    code = """
sys.path.insert(0, "tests")
from test_faults import DataLoader, Trouble, init_worker, unwrap_worker_errors
loader = DataLoader(Trouble("killed"), batch_size=1, num_workers=1, worker_init_fn=init_worker)
for batch in unwrap_worker_errors(loader):
    begun = time.monotonic()
    while time.monotonic() < begun + 0.1:
        pass
"""
    done = run_script(code.strip(), timeout=patience(100))
    assert (
        done.returncode == 2
        and done.stderr == "error: a loader worker was killed, perhaps for lack of memory; use fewer --workers\n"
    )


# ---- Folders ----


@contextmanager
def someone_else() -> Iterator[None]:
    """As a user to whom permissions apply, where the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder which this user may read only; with a file in it."""
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "old.json").write_text("{}")
    for part in (folder, *folder.parents):
        if part.name.startswith("pytest-") and os.geteuid() == 0:
            part.chmod(0o755)
    tmp_path.chmod(0o755)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_read_only_folders_are_named(locked):
    with someone_else():
        if not os.access(locked, os.R_OK, effective_ids=True):
            pytest.skip("the folder of the tests cannot be seen by another user")
        with pytest.raises(UserError, match="cannot write .*old.json: Permission denied"):
            atomic_write(locked / "old.json", b"new")
        with pytest.raises(UserError, match="cannot make folder .*new"):
            make_folder(locked / "new")
        with pytest.raises(UserError, match="locked"), toy_folder(locked / "HIC"):
            pass
    assert [path.name for path in locked.iterdir()] == ["old.json"] and (locked / "old.json").read_text() == "{}"


def test_devices_are_not_replaced_by_files():
    with pytest.raises(UserError, match="/dev/null: it is a device"):
        atomic_write("/dev/null", b"x")
    assert Path("/dev/null").is_char_device()


def test_two_commands_that_write_one_data_set(tmp_path):
    """The second is refused, and the first continues."""
    with toy_folder(tmp_path / "HIC") as staging:
        (staging / "a.txt").write_text("first")
        with pytest.raises(UserError, match="another command writes"), toy_folder(tmp_path / "HIC"):
            pass
        assert (staging / "a.txt").exists()
    assert (tmp_path / "HIC" / "a.txt").read_text() == "first"


# ---- The kill test's comparison ----


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["network"]["weight"].neg_(),
        lambda content: content["training"]["random"]["cpu"].add_(1),
        lambda content: content["training"]["scaler"].update(scale=2.0),
        lambda content: content["config"].update(lr=1),
        lambda content: content["optimizer"]["state"].pop(0),
        lambda content: content.update(more=None),
    ],
)
def test_kill_test_compares_every_entry(tmp_path, change):
    """-0.0 and 0.0 are different bits, 1 and 1.0 different types; NaN is the same as itself."""
    content = {
        "network": {"weight": torch.zeros(2)},
        "optimizer": {"state": {0: {"step": torch.ones(())}}},
        "config": {"lr": 1.0, "nothing": float("nan")},
        "training": {"random": {"cpu": torch.zeros(3, dtype=torch.uint8)}, "scaler": {"scale": 1.0}},
    }
    for name in ("a", "b", "c"):
        (tmp_path / name / "log").mkdir(parents=True)
        (tmp_path / name / "log" / "losses.jsonl").touch()
        (tmp_path / name / "model_dump").mkdir()
        if name == "c":
            change(content)
        torch.save(content, tmp_path / name / "model_dump" / "snapshot_0.pth")
    assert compare(tmp_path / "a", tmp_path / "b") == []
    assert len(compare(tmp_path / "a", tmp_path / "c")) == 1


# ---- Clocks ----


@pytest.mark.parametrize("when", [0, 1, 2**31 - 1, 2**32, -(10**6)])
def test_annotations_from_any_time(tmp_path, when, capsys):
    """Files from the past or the future: a cache holds as long as they are what they were, by the clock of the file."""
    source = tmp_path / "a.json"

    def build() -> dict:
        return {"numbers": np.array([int(source.read_text())])}

    def read() -> int:
        return int(open_store(tmp_path / "cache", "a", [source], 1, build)["numbers"][0])

    source.write_text("1")
    os.utime(source, (when, when))
    assert read() == 1 and read() == 1
    assert capsys.readouterr().out.count("building it once") == 1
    source.write_text("2")  # as long as before, and dated before it
    os.utime(source, (when - 1000, when - 1000))
    assert read() == 2


# ---- Whole programs: the campaign, once each ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "commands"])
def test_campaign(tmp_path, name):
    # Without those of little memory: there the libraries themselves now and then end the process.
    workspace = fault_campaign.Workspace(tmp_path / "faults", ["SIG", "killed", "full", "two at once", "gone"])
    workspace.make()
    counts, broken = fault_campaign.run_trial(workspace, name, range(1))
    assert not broken and counts.total() > 5, "\n".join(broken)


@pytest.mark.parametrize("name", ["images", "hands", "checkpoints", "names"])
def test_campaign_runs(tmp_path, monkeypatch, name):
    """The trials of the long campaign do what they say, and notice when the rule is broken."""
    workspace = fault_campaign.Workspace(tmp_path / "faults", [])
    monkeypatch.setattr(fault_campaign, "run_script", lambda *_: subprocess.CompletedProcess([], 0, "", ""))
    monkeypatch.setattr(fault_campaign.shutil, "copytree", lambda *_, **__: None)
    workspace.make()
    counts, broken = fault_campaign.run_trial(workspace, name, range(1))
    assert not broken and counts.total() >= 2

    def bug(*_: object) -> Iterator[tuple[str, str]]:
        raise ZeroDivisionError

    monkeypatch.setitem(fault_campaign.TRIALS, name, bug)
    assert "seed 0: ZeroDivisionError" in fault_campaign.run_trial(workspace, name, range(1))[1][0]
