"""What the stages of tool/benchmark.py share: side-by-side timing, peak memory, the table of results, the machine."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from torch.profiler import ProfilerActivity, profile

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
        if self.limit is None:
            return None
        if self.at_least:
            return self.value >= self.limit
        return self.value < self.limit if self.below else self.value <= self.limit


def table(measurements: Sequence[Measurement]) -> str:
    """One line per measurement. "processor" is the same in CPU time, where that is known."""
    rows = [("what", "measured", "rounds", "processor", "limit", "")]
    for m in measurements:
        sign = ">=" if m.at_least else "<" if m.below else "<="
        work = m.parts.get("processor_time_ratio", m.parts.get("processor_s"))
        rows.append(
            (
                m.what,
                f"{_number(m.value)} {m.unit}",
                "" if m.low is None or m.high is None else f"{_number(m.low)} .. {_number(m.high)}",
                "" if work is None else f"{_number(work)} {m.unit}",
                "" if m.limit is None else f"{sign} {_number(m.limit)} {m.unit}",
                {None: "", True: "met", False: "NOT MET"}[m.met],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


# ---- Timing ----


class Clock:
    """Times calls on one device.

    Args:
        device: synchronized before the time is read.
        rounds: how often a pair is measured.
        progress: called with a text after each round.
    """

    def __init__(
        self, device: torch.device, rounds: int, progress: Callable[[str], object] = lambda text: None
    ) -> None:
        self.device, self.rounds, self.progress = device, rounds, progress

    def wait(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object], repeat: int = 1) -> tuple[float, float]:
        """Seconds per call: wall-clock time, and CPU time of all threads of this process."""
        self.wait()
        wall, work = time.perf_counter(), time.process_time()
        for _ in range(repeat):
            function()
        self.wait()
        return (time.perf_counter() - wall) / repeat, (time.process_time() - work) / repeat

    def compare(
        self,
        stage: str,
        what: str,
        measured: Callable[[], object],
        reference: Callable[[], object],
        inverse: bool = False,
        **more: Any,
    ) -> Measurement:
        """The ratio of two calls, measured in turns: other load on the machine affects both alike.

        Args:
            inverse: the ratio says how much faster, not how much slower.
            more: attributes of the `Measurement`.
        """
        rounds: list[tuple[float, float, float, float]] = []
        for _ in range(WARM_UP):
            measured(), reference()
        for number in range(self.rounds):
            if number % 2:  # whichever goes second may find a warmer cache, or a busier machine
                (b, b_cpu), (a, a_cpu) = self.seconds(reference), self.seconds(measured)
            else:
                (a, a_cpu), (b, b_cpu) = self.seconds(measured), self.seconds(reference)
            rounds.append((a, b, a_cpu, b_cpu))
            self.progress(f"{what}: round {number + 1} of {self.rounds}")
        ratios = [b / a if inverse else a / b for a, b, _, _ in rounds]
        a, b, _, _ = map(statistics.median, zip(*rounds, strict=True))
        parts: dict[str, Any] = {"measured_s": a, "reference_s": b, "rounds": len(rounds)}
        if self.device.type == "cpu":
            # When programs share the cores, wall-clock time counts all of them, CPU time only this one.
            work = [b_cpu / a_cpu if inverse else a_cpu / b_cpu for _, _, a_cpu, b_cpu in rounds if a_cpu and b_cpu]
            if work:
                parts["processor_time_ratio"] = statistics.median(work)
        return Measurement(stage, what, statistics.median(ratios), "x", min(ratios), max(ratios), parts=parts, **more)


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


def autocast(dtype: str, device: torch.device) -> AbstractContextManager:
    """Mixed precision for a `dtype` of the command line: bf16, and compiled on a GPU."""
    if dtype == "bf16" or (dtype == "compiled" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes that PyTorch holds while `function` runs, beyond what it held before."""
    if device.type == "cuda":
        function()  # workspaces of libraries stay
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the results depend on."""
    cpu_info = Path("/proc/cpuinfo")  # psutil does not tell the processor's name
    names = re.findall(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else []
    content: dict[str, Any] = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "the library's"),
        "load_at_start": round(psutil.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        content |= {
            "gpu": properties.name,
            "gpu_memory_GB": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matrix_products": torch.backends.cuda.matmul.allow_tf32,
        }
    return content
