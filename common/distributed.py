"""One process per GPU: start them or join those of torchrun, and the few things they do together."""

import ctypes
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor
from torch import distributed as dist

from common.errors import END_SIGNALS, FAILED, STOPPED, UserError, explain_failure, one_line

TIMEOUT = timedelta(hours=2)  # for the other processes: one may be reading the annotations of a million images
MEETING_TIMEOUT = timedelta(minutes=10)  # for the processes of all machines to start
GRACE_SECONDS = 5.0  # for the others to end by themselves once a process has failed
# `timeout`, systemd, Slurm and torchrun signal a process directly and again through its group or its parent. A signal
# this soon after the first is the same request.
REPEAT_SECONDS = 5.0
STOP_SIGNALS = (signal.SIGINT, *END_SIGNALS)  # a training saves and ends
PR_SET_PDEATHSIG = 1  # of Linux, <sys/prctl.h>


class ProcessInfo(NamedTuple):
    """This process among all; `local_rank` is its rank on this machine."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    @property
    def local_world(self) -> int:
        """How many of the processes run on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world))


class OtherStopped(UserError):
    """This process ends only because another one of its group has, which reports the cause."""


def launch(run: Callable[[ProcessInfo], int | None], devices: list[torch.device]) -> int:
    """Call `run` in one process per device, and wait.

    Under torchrun (RANK and WORLD_SIZE are set) the processes exist already and this is one of them. `STOP_SIGNALS`
    are passed on, as SIGTERM, to the processes that this one starts; they die with this one.

    Args:
        run: picklable: a function of a module, or a partial of one.
        devices: of this machine.

    Returns:
        The exit code of `run`; where it differs, that of a process that failed.

    Raises:
        UserError: torchrun started more processes than there are devices, the processes cannot meet, or a process
            raised it or was killed.
    """
    if under_torchrun():
        rank, world, local = _torchrun_ranks()
        if devices[0].type == "cpu":
            devices = devices[:1] * (local + 1)
        if local >= len(devices):
            raise UserError(
                f"torchrun started a process for GPU {local}, but there are only {len(devices)}; lower --nproc_per_node"
            )
        if "TORCHELASTIC_RUN_ID" in os.environ:  # under other launchers processes may outlive their parent
            end_with_parent()
        return _run_in_group(run, ProcessInfo(rank, world, local, devices[local]), "env://")
    if len(devices) == 1:
        if devices[0].type == "cuda":
            torch.cuda.set_device(devices[0])
        return run(ProcessInfo(0, 1, 0, devices[0])) or 0
    with tempfile.TemporaryDirectory() as folder:  # where the processes meet, without a port that may be taken
        # The processes read the environment as they start. Python's tracker would warn of what a killed process left.
        quiet = (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker")
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, quiet))
        if devices[0].type == "cpu":
            # Idle OpenMP threads spin by default, which slows down whatever shares the cores by a third. OpenMP reads
            # this when a process loads PyTorch, which the spawned ones do only now; this one computes nothing. Under
            # torchrun each process has a single thread anyway.
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_child, args=(run, ProcessInfo(rank, len(devices), rank, device), folder))
            for rank, device in enumerate(devices)
        ]
        return _watch(processes, Path(folder))


def under_torchrun() -> bool:
    """Whether torchrun, or a similar launcher, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted_by_torchrun() -> bool:
    """Whether torchrun runs the same command once more, after a process failed (--max-restarts)."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def _torchrun_ranks() -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK."""
    try:
        rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        valid = 0 <= rank < world and 0 <= local < world
    except ValueError:
        valid = False
    if not valid:
        values = ", ".join(f"{name}={os.environ.get(name)!r}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        raise UserError(f"{values} do not name a process of a group; start the processes with torchrun, or unset them")
    return rank, world, local


def usable_cores() -> int:
    """The number of CPU cores that this process may use, which a job's share of a machine limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Have Linux kill this process as soon as its parent is gone, even by SIGKILL; no effect on other systems.

    Otherwise an orphan keeps training, and keeps the folder's lock and the GPU's memory.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # gone before the call
        os._exit(1)


def _child(run: Callable[[ProcessInfo], int | None], process: ProcessInfo, folder: str) -> None:
    end_with_parent()
    for number in STOP_SIGNALS:  # a terminal sends them to all; the parent passes them on as SIGTERM
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if process.device.type == "cpu":
        torch.set_num_threads(max(1, usable_cores() // process.world))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all run on this machine, whatever its name resolves to
    try:
        code = _run_in_group(run, process, f"file://{folder}/store")
    except OtherStopped as error:
        Path(folder, f"stopped_{process.rank}").write_text(one_line(str(error)), encoding="utf-8")
        code = FAILED
    except KeyboardInterrupt:
        code = STOPPED
    except Exception as error:
        text = explain_failure(error)
        if text is None:
            raise
        # The parent prints one of them.
        Path(folder, f"error_{process.rank}").write_text(one_line(text), encoding="utf-8")
        code = FAILED
    finally:
        # The interpreter's end takes a while, without our handlers: a repeated signal would turn the code into 143.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


def _run_in_group(run: Callable[[ProcessInfo], int | None], process: ProcessInfo, url: str) -> int:
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    backend = "nccl" if process.device.type == "cuda" else "gloo"
    store = _meet(url, process)
    dist.init_process_group(backend, store=store, timeout=TIMEOUT, rank=process.rank, world_size=process.world)
    # Harmless: the gradients of 1 x 1 convolutions are copied.
    warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
    try:
        code = run(process) or 0
    except UserError as error:
        # Not destroy_process_group: the others may never answer. They notice when this process ends.
        raise UserError(
            f"{error} (process {process.rank} of {process.world})" if process.rank else str(error)
        ) from None
    except RuntimeError as error:
        # When a process of the group ends, the next collective call fails in the others, with a long message.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise OtherStopped(f"process {process.rank} of {process.world} stops: {_why_others(error)}") from None
        raise
    dist.destroy_process_group()
    return code


def _why_others(error: RuntimeError) -> str:
    """Why this process can no longer work with the others. NCCL may have failed by itself."""
    line = str(error).partition("\n")[0]
    return f"{line}; set NCCL_DEBUG=INFO for details" if "NCCL" in line else "another one has stopped"


def _meet(url: str, process: ProcessInfo) -> dist.Store:
    """The store through which the processes of a group find each other.

    Args:
        url: file://..., or env:// for MASTER_ADDR and MASTER_PORT.

    Raises:
        UserError: there is none at this address, or some processes do not come.
    """
    names = ("MASTER_ADDR", "MASTER_PORT")
    try:
        if url == "env://" and "MASTER_ADDR" in os.environ:  # PyTorch would try an unknown name until the timeout
            socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
        store, _, _ = next(dist.rendezvous(url, process.rank, process.world, timeout=MEETING_TIMEOUT))
    except (ValueError, RuntimeError, OSError) as error:
        where = " ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]
        raise UserError(
            f"process {process.rank} of {process.world} cannot meet the others at {where}: {reason}; all need the "
            "address of the first one's machine, and a port that is free there"
        ) from None
    store.set_timeout(TIMEOUT)
    return store


def _watch(processes: list[Any], folder: Path) -> int:
    """Start processes, pass the first signal on to them and wait; if one fails, end the others.

    Args:
        folder: where a process writes the message of a UserError, as error_{rank}, or stopped_{rank} if another
            process may be the cause.

    Returns:
        The exit code for all.

    Raises:
        UserError: the message of a process, or that one was killed.
    """
    asked = StopRequest()

    def pass_on(number: int, frame: object) -> None:
        if asked.is_second(number):
            _kill_all(processes)
            os._exit(STOPPED)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    before = _catch(pass_on)
    try:
        for process in processes:
            process.start()
        codes = _wait_for_all(processes)
    finally:
        _kill_all(processes)
        if not asked.number:  # see `StopSignal`
            _restore(before)
    errors = sorted(folder.glob("error_*"))
    if errors:
        raise UserError(errors[0].read_text(encoding="utf-8"))
    if asked.number and -signal.SIGTERM in codes:  # before training began; as `run_main` ends a single process
        return 128 + asked.number
    if killed := [-code for code in codes if code < 0]:
        raise UserError(f"a process was ended by signal {killed[0]}; if it was 9, memory may have run out")
    failed = [code for code in codes if code]
    stopped = sorted(folder.glob("stopped_*"))
    if stopped and set(failed) == {FAILED}:  # no process has said why
        raise UserError(stopped[0].read_text(encoding="utf-8"))
    return min(failed) if failed else STOPPED if asked.number == signal.SIGINT else 0


def _catch(handler: Callable[[int, object], None]) -> dict[int, Any]:
    """Handle the `STOP_SIGNALS` that are not ignored, as under nohup. Returns the previous handlers."""
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _wait_for_all(processes: list[Any]) -> list[int]:
    """The exit codes of the processes that end by themselves, at most `GRACE_SECONDS` after the first failure."""
    running, end = {process.sentinel: process for process in processes}, None
    codes: list[int] = []
    while running and (end is None or time.monotonic() < end):
        for sentinel in wait(list(running), end and max(0, end - time.monotonic())):
            process = running.pop(sentinel)
            process.join()
            codes.append(process.exitcode)
            if process.exitcode and end is None:
                end = time.monotonic() + GRACE_SECONDS
    return codes


def _kill_all(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


# ---- What the processes of a group do together; no effect with a single process ----


def mean_over_processes(values: Tensor, process: ProcessInfo) -> Tensor:
    """The mean of a tensor over all processes, in process; bit-identical in each of them."""
    if process.world > 1:
        dist.all_reduce(values)
        values /= process.world
    return values


def from_main(value: Any, process: ProcessInfo) -> Any:
    """The value of the main process: numbers, strings and containers."""
    box = [value]
    if process.world > 1:
        dist.broadcast_object_list(box, src=0, device=process.device)
    return box[0]


def from_all(value: Any, process: ProcessInfo) -> list[Any]:
    """The value of each process, by rank."""
    values = [value]
    if process.world > 1:
        values = [None] * process.world
        dist.all_gather_object(values, value)
    return values


def barrier(process: ProcessInfo) -> None:
    """Wait until all processes get here."""
    if process.world > 1:
        from_all(None, process)


@contextmanager
def main_first(process: ProcessInfo) -> Iterator[None]:
    """Run the block in the main process, then in the first of each other machine, then in all others.

    So caches are built once, on a disk that the machines share and on their own ones.
    """
    turn = 0 if process.is_main else 2 if process.local_rank else 1
    for _ in range(turn):
        barrier(process)
    yield
    for _ in range(2 - turn):
        barrier(process)


class StopRequest:
    """The first signal that asks this process to stop. Those within `REPEAT_SECONDS` are the same request."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0

    def is_second(self, number: int) -> bool:
        """Note a signal; whether it is a second request."""
        if not self.number:
            self.number, self._since = number, time.monotonic()
        return time.monotonic() - self._since > REPEAT_SECONDS


class StopSignal(StopRequest):
    """Whether this process is to stop: after SIGTERM, SIGHUP or Ctrl-C, or because its parent process is gone.

    A second request raises KeyboardInterrupt at once; to processes that `launch` started it is left to their parent,
    which kills them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked_of_all = False  # agreed on by all processes after the last step
        self.parent = multiprocessing.parent_process()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        self._before = _catch(self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.number:  # else the same request may come again until the process ends
            _restore(self._before)

    def _note(self, number: int, frame: object) -> None:
        first = not self.number
        if self.is_second(number) and self.parent is None:
            raise KeyboardInterrupt
        if first:
            text = f"\nstopping after this step; a second signal, after {REPEAT_SECONDS:.0f} s, stops at once\n"
            # Not print: the signal may have interrupted one, and Python's buffer refuses a second writer.
            with suppress(OSError, ValueError):
                os.write(2, text.encode())  # stderr

    @property
    def asked(self) -> bool:
        """Whether to stop after this step."""
        return bool(self.number) or (self.parent is not None and not self.parent.is_alive())

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells have it; 0 after SIGTERM or SIGHUP, which ask for a clean end."""
        return STOPPED if self.number == signal.SIGINT else 0
