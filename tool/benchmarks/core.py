"""What the stages of tool/benchmark.py share: side-by-side timing, peak memory, the table of results, the machine."""

import argparse
import math
import operator
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from common.distributed import usable_cores
from common.nets.mano import TwoHandMano
from common.precision import autocast as amp_autocast
from common.run_record import versions
from main.config import Config

DTYPES = ("float32", "bf16", "compiled")
SIGNS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}
WARM_UP = 2  # calls before the first timed one: memory is allocated, kernels are chosen


@dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Attributes:
        stage: the stage of `tool/benchmark.py`.
        what: what was measured, against what.
        value: the median over the rounds, or the single measurement.
        unit: "x" is a ratio.
        low, high: the smallest and the largest of the rounds.
        limit: the goal; None: there is none.
        at_least: the limit is a lower bound.
        below: the limit itself misses the goal.
        detail: how it was measured, in words.
        parts: the numbers behind it.
    """

    stage: str
    what: str
    value: float
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    at_least: bool = False
    below: bool = False
    detail: str = ""
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.limit is None else SIGNS[self.sign](self.value, self.limit)

    @property
    def sign(self) -> str:
        return ">=" if self.at_least else "<" if self.below else "<="


def table(measurements: Sequence[Measurement]) -> str:
    """One line per measurement. "processor" is the same in CPU time, where that is known."""
    rows = [("what", "measured", "rounds", "processor", "limit", "")]
    for m in measurements:
        work = m.parts.get("processor_time_ratio", m.parts.get("processor_s"))
        rows.append(
            (
                m.what,
                f"{_number(m.value)} {m.unit}",
                "" if m.low is None or m.high is None else f"{_number(m.low)} .. {_number(m.high)}",
                "" if work is None else f"{_number(work)} {m.unit}",
                "" if m.limit is None else f"{m.sign} {_number(m.limit)} {m.unit}",
                {None: "", True: "met", False: "NOT MET"}[m.met],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


# ---- Timing ----


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Clock:
    """Times calls on one device.

    Attributes:
        device: synchronized before the time is read.
        rounds: how often a pair is measured.
        progress: called with a text after each round.
    """

    device: torch.device
    rounds: int
    progress: Callable[[str], object] = print

    def seconds(self, function: Callable[[], object]) -> tuple[float, float]:
        """Seconds of a call: wall-clock time, and CPU time of all threads of this process."""
        synchronize(self.device)
        wall, work = time.perf_counter(), time.process_time()
        function()
        synchronize(self.device)
        return time.perf_counter() - wall, time.process_time() - work

    def compare(
        self,
        stage: str,
        what: str,
        measured: Callable[[], object],
        reference: Callable[[], object],
        inverse: bool = False,
        **more: Any,
    ) -> Measurement:
        """The ratio of two calls, measured in alternation, so that other load affects both alike.

        Args:
            inverse: the ratio says how much faster, not how much slower.
            more: attributes of the `Measurement`.
        """
        rounds = []  # wall-clock and CPU time, of the measured call and of the reference
        for _ in range(WARM_UP):
            measured(), reference()
        for number in range(self.rounds):
            if number % 2:  # whichever goes second may find a warmer cache, or a busier machine
                b, a = self.seconds(reference), self.seconds(measured)
            else:
                a, b = self.seconds(measured), self.seconds(reference)
            rounds.append((a, b))
            self.progress(f"{what}: round {number + 1} of {self.rounds}")
        times = np.array(rounds)  # (rounds, 2 calls, wall and CPU)
        with np.errstate(divide="ignore", invalid="ignore"):  # CPU time has coarse ticks on some systems
            ratios = times[:, 1] / times[:, 0] if inverse else times[:, 0] / times[:, 1]
        (ratio, work), (a, b) = np.median(ratios, 0).tolist(), np.median(times[..., 0], 0).tolist()
        parts = {"measured_s": a, "reference_s": b, "rounds": len(rounds)}
        if self.device.type == "cpu" and math.isfinite(work):
            # When programs share the cores, wall-clock time counts all of them, CPU time only this one.
            parts["processor_time_ratio"] = work
        low, high = ratios[:, 0].min().item(), ratios[:, 0].max().item()
        return Measurement(stage, what, ratio, "x", low, high, parts=parts, **more)


@dataclass
class Bench:
    """What all stages work with.

    Attributes:
        args: the command line of tool/benchmark.py with the device's defaults filled in.
        notes: other findings; printed and written to the JSON file.
    """

    args: argparse.Namespace
    config: Config
    mano: TwoHandMano
    clock: Clock
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.clock.device

    @property
    def published(self) -> bool:
        """Whether the network is the published one, for which the limits are."""
        names = ("body_backbone", "hand_backbone", "trans_backbone", "frames")
        return all(getattr(self.config, name) == getattr(Config(), name) for name in names)

    def limit(self, value: float) -> float | None:
        """The limit of a network's result."""
        return value if self.published else None


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 convolutions and matrix products alike: PyTorch's defaults for them differ."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = enabled
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def amp_of(dtype: str, device: torch.device) -> str:
    """The mixed precision of a dtype of the command line, as `Config.amp`: bf16, and compiled on a GPU."""
    return "bf16" if dtype == "bf16" or (dtype == "compiled" and device.type == "cuda") else "none"


def autocast(dtype: str, device: torch.device) -> AbstractContextManager:
    """Mixed precision for a dtype of the command line."""
    return amp_autocast(device, amp_of(dtype, device))


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes that PyTorch holds while `function` runs, beyond what it held before."""
    if device.type == "cuda":
        function()  # workspaces of libraries are allocated once
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the results depend on."""
    cpu_info = Path("/proc/cpuinfo")  # psutil does not tell the processor's name
    names = re.findall(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else []
    content: dict[str, Any] = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "the library's"),
        "load_at_start": round(psutil.getloadavg()[0], 2),
        **versions(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        content |= {
            "gpu_memory_GB": round(properties.total_memory / 2**30, 1),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matrix_products": torch.backends.cuda.matmul.allow_tf32,
        }
    return content
