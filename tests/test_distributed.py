"""Processes that work together: they end together, with one line, and none outlives the one that started it."""

import argparse
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from processes import (
    TWO,
    fail_about_odd_name,
    fail_everywhere,
    fail_in_nccl,
    fail_in_second,
    kill_second,
    miss_file_in_second,
)

from common import distributed
from common.distributed import ProcessInfo, StopSignal, barrier, launch, main_first
from common.errors import UserError
from common.utils.files import exclusive
from main.train import wrap_model
from tests.faults import patience

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def start_script(folder: Path, work: str, sign: str) -> Iterator[subprocess.Popen]:
    """A program that launches `work(folder)` twice, in a process group of its own, from the moment `sign` is there."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from functools import partial\nfrom common.distributed import launch\n"
        f"from processes import TWO, Path, {work}\n"
        f"if __name__ == '__main__': sys.exit(launch(partial({work}, Path({str(folder)!r})), TWO))"
    )
    script = folder / "parent.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script], start_new_session=True) as parent:
        try:
            deadline = time.monotonic() + patience(120)
            while not (folder / sign).exists():
                assert parent.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            yield parent
        finally:
            parent.kill()


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (fail_everywhere, r"^this is wrong$"),
        (fail_in_second, r"^this is wrong \(process 1 of 2\)$"),
        (fail_about_odd_name, r"^no a\\udcff.jpg$"),
        (miss_file_in_second, r"^there.jpg: No such file or directory$"),
        (fail_in_nccl, r"NCCL error in: x.cpp:1, unhandled system error; set NCCL_DEBUG=INFO for details$"),
        (kill_second, "a process was ended by signal 9"),
    ],
)
def test_one_that_fails_ends_all_with_one_line(
    work: Callable[[ProcessInfo], None], told: str, capfd: pytest.CaptureFixture
) -> None:
    """However many of them it concerns, and though the others only wait; nothing else is printed."""
    begun = time.monotonic()
    with pytest.raises(UserError, match=told):
        launch(work, TWO)
    assert time.monotonic() - begun < patience(60)
    assert "Traceback" not in (printed := capfd.readouterr().err) and "this is wrong" not in printed


REQUEST_WITHIN_A_PRINT = """
import sys
from common.distributed import StopSignal

with StopSignal() as stop:
    print("ready", flush=True)
    print("x" * 1_000_000, file=sys.stderr, flush=True)
    assert stop.asked
"""


def test_a_signal_may_interrupt_a_print() -> None:
    """The program waits inside a write, since nobody reads; Python's buffer refuses a print of the handler there."""
    process = subprocess.Popen(
        [sys.executable, "-c", REQUEST_WITHIN_A_PRINT],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1)  # until the pipe is full
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in told, told[-500:]
    assert "stopping after this step" in told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_none_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    """Killed, it can say nothing to them; they would train on and hold the folder's lock."""
    with start_script(tmp_path, "wait_long", "together") as parent:
        parent.kill()
    children = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(children) == 2
    deadline = time.monotonic() + patience(20)
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGHUP, False, 0), (signal.SIGTERM, True, 0), (signal.SIGINT, True, 130)],
)
def test_a_signal_to_one_or_all_lets_all_save(tmp_path: Path, number: int, to_group: bool, code: int) -> None:
    """A terminal, `timeout`, systemd and Slurm signal the group, `timeout` its child twice: it is one request."""
    with start_script(tmp_path, "work_until_asked", "at work 1") as parent:
        while not (tmp_path / "at work 0").exists():
            time.sleep(0.05)
        if to_group:
            os.kill(parent.pid, number)
            time.sleep(0.1)
        (os.killpg if to_group else os.kill)(parent.pid, number)
        assert parent.wait(patience(60)) == code
    assert {path.name for path in tmp_path.glob("saved *")} == {"saved 0", "saved 1"}


def test_a_second_request_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that comes later than the repetitions of the first."""
    monkeypatch.setattr(distributed, "REPEAT_SECONDS", 0.2)
    before = {number: signal.getsignal(number) for number in distributed.STOP_SIGNALS}
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGTERM
            time.sleep(0.3)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "MASTER_ADDR expected, but not set"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "port"}, "MASTER_PORT=port: invalid literal"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "port must have value from 0 to 65535"),
        ({"MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "29500"}, "no.such.host.invalid"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "taken"}, "address already in use"),
        ({"RANK": "2"}, "RANK='2', WORLD_SIZE='2'"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE='many'"),
    ],
)
def test_processes_that_cannot_meet(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: str) -> None:
    """One line each, which names the variables, and without waiting."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **environment}.items():
            monkeypatch.setenv(name, port if value == "taken" else value)
        with pytest.raises(UserError, match=told) as caught:
            launch(fail_everywhere, TWO)
    assert "\n" not in str(caught.value)


def test_processes_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have ten minutes, not the two hours that a step may take."""
    monkeypatch.setattr(distributed, "MEETING_TIMEOUT", distributed.timedelta(seconds=1))
    with socket.create_server(("", 0)) as free:
        port = str(free.getsockname()[1])
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(UserError, match="process 0 of 2 cannot meet the others at .*1/2 clients joined"):
        launch(fail_everywhere, TWO)


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Some network file systems have none; that is no reason not to train."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with exclusive(tmp_path / ".lock", ""):
        pass
    warning = capsys.readouterr().err
    assert "cannot be locked (No locks available); start no second run in it" in warning
    assert warning.count("\n") == 1


def test_caches_are_built_by_the_main_process_then_by_one_of_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with two processes each, whose disk may be shared: nobody builds beside the main process."""
    meetings: list[None] = []
    monkeypatch.setattr(distributed, "barrier", lambda _: meetings.append(None))
    before = []
    for rank, local in enumerate([0, 1, 0, 1]):
        meetings.clear()
        with main_first(ProcessInfo(rank, 4, local, torch.device("cpu"))):
            before.append(len(meetings))
        assert len(meetings) == 2, "all meet equally often"
    assert before == [0, 2, 1, 2]


def is_alive(pid: int) -> bool:
    """A zombie, which only waits to be noticed, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def train_batch_norm(folder: Path, process: ProcessInfo) -> None:
    """Three steps of a batch norm in a network as `wrap_model` shares it out, on data of this process."""
    model = torch.nn.BatchNorm1d(4)
    network = wrap_model(argparse.Namespace(compile=False, dp_devices=None), process, model)
    for batch in batches_of(process.rank):
        network(batch).square().sum().backward()
    torch.save(model.state_dict(), folder / f"{process.rank}.pth")
    barrier(process)


def batches_of(rank: int) -> torch.Tensor:
    return torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(rank)) + rank


def test_each_process_keeps_the_statistics_of_its_own_samples(tmp_path: Path) -> None:
    """As in the published system, where the first GPU's are saved. DistributedDataParallel by itself would send those
    of the first process around before each forward pass."""
    assert launch(partial(train_batch_norm, tmp_path), TWO) == 0
    for rank in (0, 1):
        alone = torch.nn.BatchNorm1d(4)
        for batch in batches_of(rank):
            alone(batch)
        found = torch.load(tmp_path / f"{rank}.pth")
        for name, value in alone.named_buffers():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
