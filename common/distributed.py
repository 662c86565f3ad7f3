"""One process a GPU: start them, or join those that torchrun started, and the few things they do together."""

import errno
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor
from torch import distributed as dist

from common.errors import FAILED, STOPPED, UserError, explain_failure

# Patience with the other processes: one of them may be reading the annotations of a million pictures.
TIMEOUT = timedelta(hours=2)
PATIENCE = 5.0  # seconds for the others to end by themselves once a process has failed
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a training saves and ends
QUIET_TRACKER = "ignore:resource_tracker"


class ProcessInfo(NamedTuple):
    """This process among all. `local_rank` counts on this machine."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0


class OtherStopped(UserError):
    """This process ends only because another one of its group has; what went wrong is said there."""


def launch(run: Callable[[ProcessInfo], int | None], devices: list[torch.device]) -> int:
    """Call `run` in one process for each device, and wait.

    Under torchrun (RANK and WORLD_SIZE are set) the processes are there already and this one is one of them. The
    `STOP_SIGNALS` reach all processes that this one starts, as SIGTERM; they die with this one.

    Args:
        run: a function of a module, or a partial of one; it must be picklable.
        devices: of this machine.

    Returns:
        The exit code: that of `run`; where it differs, of a process that failed.

    Raises:
        UserError: torchrun started more processes than there are devices, or a process was killed, or raised one.
    """
    if under_torchrun():
        rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if devices[0].type == "cpu":
            devices = devices[:1] * (local + 1)
        if local >= len(devices):
            raise UserError(f"torchrun started a process for GPU number {local}, there are {len(devices)}; fewer with "
                            "--nproc_per_node")  # fmt: skip
        if "TORCHELASTIC_RUN_ID" in os.environ:  # else it may be a launcher whose processes outlive what forked them
            end_with_parent()
        return _run_in_group(run, ProcessInfo(rank, world, local, devices[local]), "env://")
    if len(devices) == 1:
        if devices[0].type == "cuda":
            torch.cuda.set_device(devices[0])
        return run(ProcessInfo(0, 1, 0, devices[0])) or 0
    with tempfile.TemporaryDirectory() as folder:  # where the processes find each other: no port to be taken
        # Python's tracker would complain at length of what a killed process left to it.
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), QUIET_TRACKER)))
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_child, args=(run, ProcessInfo(rank, len(devices), rank, device), folder))
            for rank, device in enumerate(devices)
        ]
        return _watch(processes, Path(folder))


def under_torchrun() -> bool:
    """Whether torchrun, or a launcher of its kind, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def end_with_parent() -> None:
    """Have Linux kill this process as soon as the one that started it is gone, even by SIGKILL.

    Else it would train on unseen, and keep the folder's lock or the GPU's memory. Elsewhere than on Linux this does
    nothing.
    """
    multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it was gone before
        os._exit(1)


def _child(run: Callable[[ProcessInfo], int | None], place: ProcessInfo, folder: str) -> None:
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; the parent passes them on
        signal.signal(number, signal.SIG_IGN)
    if place.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.world))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whatever its name resolves to
    try:
        code = _run_in_group(run, place, f"file://{folder}/store")
    except OtherStopped:
        code = FAILED
    except KeyboardInterrupt:
        code = STOPPED
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else explain_failure(error)
        if text is None:
            raise
        Path(folder, f"error_{place.rank}").write_text(text, encoding="utf-8")  # the parent says it, once for all
        code = FAILED
    sys.exit(code)


def _run_in_group(run: Callable[[ProcessInfo], int | None], place: ProcessInfo, store: str) -> int:
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    backend = "nccl" if place.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store, timeout=TIMEOUT, rank=place.rank, world_size=place.world)
    # Of little weight: the gradients of 1 x 1 convolutions are copied.
    warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
    try:
        code = run(place) or 0
    except UserError as error:
        # Not destroy_process_group: the others may never answer. Leaving tells them.
        raise UserError(f"{error} (process {place.rank} of {place.world})" if place.rank else str(error)) from None
    except RuntimeError as error:
        # A process of the group that leaves makes the others fail in their next common step, with a long story.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise OtherStopped(f"process {place.rank} of {place.world} stops: another one has stopped") from None
        raise
    dist.destroy_process_group()
    return code


def _watch(processes: list[Any], folder: Path) -> int:
    """Start processes, pass signals on to them and wait; if one fails, the others are ended.

    Args:
        folder: where a process that raises UserError leaves its text, as error_{rank}.

    Returns:
        The exit code of all.

    Raises:
        UserError: the text of a process, or that one was killed.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if number in asked:  # the second time: at once
            _kill_all(processes)
            os._exit(STOPPED)
        asked.append(number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    for process in processes:
        process.start()
    before = _catch(pass_on)
    try:
        codes = _wait_for_all(processes)
    finally:
        _kill_all(processes)
        for number, handler in before.items():
            signal.signal(number, handler)
    errors = sorted(folder.glob("error_*"))
    if errors:
        raise UserError(errors[0].read_text(encoding="utf-8"))
    if asked and -signal.SIGTERM in codes:  # before training had begun
        codes = []
    if killed := [-code for code in codes if code < 0]:
        raise UserError(f"a process was ended by signal {killed[0]}; if it was 9, memory may have run out")
    failed = [code for code in codes if code]
    return min(failed) if failed else STOPPED if signal.SIGINT in asked else 0


def _catch(handler: Callable[[int, object], None]) -> dict[int, Any]:
    """Have `handler` called for the `STOP_SIGNALS` that are not ignored, as after nohup. Returns who was before."""
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _wait_for_all(processes: list[Any]) -> list[int]:
    """The exit codes of those that ended by themselves: all, or those of some seconds after the first failure."""
    running, end = {process.sentinel: process for process in processes}, None
    codes: list[int] = []
    while running and (end is None or time.monotonic() < end):
        for sentinel in wait(list(running), end and max(0, end - time.monotonic())):
            process = running.pop(sentinel)
            process.join()
            codes.append(process.exitcode)
            if process.exitcode and end is None:
                end = time.monotonic() + PATIENCE
    return codes


def _kill_all(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


# ---- What the processes of a group do together; with a single process these do nothing ----


def mean_over_processes(values: Tensor, place: ProcessInfo) -> Tensor:
    """The mean over all processes of a tensor, in place; the same bits in each of them."""
    if place.world > 1:
        dist.all_reduce(values)
        values /= place.world
    return values


def from_main(value: Any, place: ProcessInfo) -> Any:
    """What the main process has. `value`: numbers, texts and containers."""
    box = [value]
    if place.world > 1:
        dist.broadcast_object_list(box, src=0, device=place.device)
    return box[0]


def from_all(value: Any, place: ProcessInfo) -> list[Any]:
    """What each process has, in order."""
    values = [value]
    if place.world > 1:
        values = [None] * place.world
        dist.all_gather_object(values, value)
    return values


def barrier(place: ProcessInfo) -> None:
    """Wait until all processes are here."""
    if place.world > 1:
        from_all(None, place)


@contextmanager
def main_first(place: ProcessInfo) -> Iterator[None]:
    """The block runs in the first process of each machine, then in the others: what it caches is made once."""
    if place.local_rank:
        barrier(place)
    yield
    if not place.local_rank:
        barrier(place)


class StopSignal:
    """Whether this process was asked to stop: by SIGTERM, SIGHUP, Ctrl-C, or because its parent process is gone.

    After a second signal KeyboardInterrupt is raised at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self.asked_of_all = False  # what all processes agreed on after the last step
        self.parent = multiprocessing.parent_process()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        self._before = _catch(self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)

    @property
    def asked(self) -> bool:
        """Whether to stop after this step."""
        return bool(self.number) or (self.parent is not None and not self.parent.is_alive())

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells have it; 0 after SIGTERM or SIGHUP, which ask for a clean end."""
        return STOPPED if self.number == signal.SIGINT else 0


class FolderLock:
    """Keeps a second training out of a folder, until this process ends, however it ends.

    Args:
        folder: exists.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl

        try:
            self.file = open(folder / ".lock", "a")  # noqa: SIM115 - held open as long as the process lives
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {error.strerror or error}; choose another --output") from None
        try:
            # lockf, not flock: a lock of flock would live on in loader workers, which outlive a killed training by
            # some seconds.
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"cannot lock {folder}: {error.strerror or error}; choose another --output") from None
            raise UserError(
                f"another training runs in {folder}; wait for it, or choose another folder with --output"
            ) from None
