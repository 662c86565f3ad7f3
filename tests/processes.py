"""What the processes of test_distributed.py do, in a module that is imported quickly."""

import errno
import os
import signal
import time
from pathlib import Path

import torch

from common.distributed import ProcessInfo, StopSignal, barrier
from common.errors import UserError

TWO = [torch.device("cpu")] * 2


def fail_everywhere(process: ProcessInfo) -> None:
    raise UserError("this is wrong")


def fail_in_second(process: ProcessInfo) -> None:
    if process.rank:
        raise UserError("this is wrong")
    barrier(process)


def fail_about_odd_name(process: ProcessInfo) -> None:
    raise UserError("no a\udcff.jpg")


def miss_file_in_second(process: ProcessInfo) -> None:
    if process.rank:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "there.jpg")
    barrier(process)


def fail_in_nccl(process: ProcessInfo) -> None:
    raise torch.distributed.DistBackendError("NCCL error in: x.cpp:1, unhandled system error\nLast error: ...")


def kill_second(process: ProcessInfo) -> None:
    """As the system does when memory runs out."""
    if process.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    barrier(process)


def wait_long(folder: Path, process: ProcessInfo) -> None:
    (folder / str(os.getpid())).touch()
    barrier(process)
    (folder / "together").touch()
    time.sleep(60)


def work_until_asked(folder: Path, process: ProcessInfo) -> None:
    with StopSignal() as stop:
        barrier(process)
        (folder / f"at work {process.rank}").touch()
        while not stop.asked:
            time.sleep(0.02)
        (folder / f"saved {process.rank}").touch()
