"""What the parts of tool/benchmark.py share: side-by-side timing, peak memory, the lines of the result, the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WARM_UP = 2  # calls before the first one that counts: memory is allocated, kernels are chosen


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        stage: of `tool/benchmark.py`, the one it was measured in.
        what: what was measured, against what.
        value: the median over the rounds, or the one measurement.
        unit: "x" is a ratio.
        low, high: the smallest and the largest of the rounds.
        limit: to be reached; None: nothing is asked.
        at_least: the limit is a lower one.
        below: the limit itself is not allowed any more.
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
        """Whether the limit is kept; None where there is none."""
        if self.limit is None:
            return None
        if self.at_least:
            return self.value >= self.limit
        return self.value < self.limit if self.below else self.value <= self.limit


def as_dict(figure: Figure) -> dict[str, Any]:
    """Plain data for the JSON file."""
    names = ("stage", "what", "value", "unit", "low", "high", "limit", "at_least", "detail", "parts")
    return {name: getattr(figure, name) for name in names} | {"met": figure.met}


def table(figures: Sequence[Figure]) -> str:
    """The figures as a table, a line each. "processor" is the same by the processors' time, where that is known."""
    rows = [("what", "measured", "rounds", "processor", "limit", "")]
    for figure in figures:
        spread = "" if figure.low is None else f"{_number(figure.low)} .. {_number(figure.high)}"
        sign = ">=" if figure.at_least else "<" if figure.below else "<="
        limit = "" if figure.limit is None else f"{sign} {_number(figure.limit)} {figure.unit}"
        verdict = {None: "", True: "met", False: "NOT MET"}[figure.met]
        work = figure.parts.get("processor_time_ratio", figure.parts.get("processor_s"))
        work = "" if work is None else f"{_number(work)} {figure.unit}"
        rows.append((figure.what, f"{_number(figure.value)} {figure.unit}", spread, work, limit, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


# ---- Timing ----


class Clock:
    """Measures on one device.

    Args:
        device: it is waited for before the time is read.
        rounds: how often a pair is measured.
        progress: called with a text after each round.
    """

    def __init__(self, device: "torch.device", rounds: int, progress: Callable[[str], None] = lambda text: None):
        self.device, self.rounds, self.progress = device, rounds, progress

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object], repeat: int = 1) -> tuple[float, float]:
        """Seconds of one call: by the wall clock, and of processors (all threads of this process)."""
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
        within: AbstractContextManager | None = None,
        repeat: int = 1,
        inverse: bool = False,
        **limit: Any,
    ) -> Figure:
        """The ratio of two things, measured in turns: whatever else the machine does meets both alike.

        Args:
            within: both run in it.
            repeat: calls of each in a round, for short ones.
            inverse: the ratio says how much faster, not how much slower.
            limit: more attributes of the `Figure`.
        """
        rounds: list[tuple[float, float, float, float]] = []
        with within or nullcontext():
            for _ in range(WARM_UP):
                measured(), reference()
            for number in range(self.rounds):
                if number % 2:  # whichever goes second may find a warmer cache, or a busier machine
                    (b, b_cpu), (a, a_cpu) = self.seconds(reference, repeat), self.seconds(measured, repeat)
                else:
                    (a, a_cpu), (b, b_cpu) = self.seconds(measured, repeat), self.seconds(reference, repeat)
                rounds.append((a, b, a_cpu, b_cpu))
                self.progress(f"{what}: round {number + 1} of {self.rounds}")
        ratios = [b / a if inverse else a / b for a, b, _, _ in rounds]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        parts = {"measured_s": medians[0], "reference_s": medians[1], "rounds": len(rounds)}
        if self.device.type == "cpu":
            # Of two programs that share the cores the wall clock sees both, the processor clock only this one.
            work = [c / d for _, _, c, d in rounds if d > 0]
            if work:
                ratio = statistics.median(work)
                parts["processor_time_ratio"] = 1 / ratio if inverse and ratio else ratio
        given = {"parts": parts} | limit
        given["parts"] = parts | given["parts"]
        return Figure(stage, what, statistics.median(ratios), "x", min(ratios), max(ratios), **given)


def peak_memory(function: Callable[[], object], device: "torch.device") -> int:
    """Bytes that PyTorch holds at most while `function` runs, beyond what it holds before."""
    import torch

    if device.type == "cuda":
        function()  # workspaces of libraries stay
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


# ---- The machine ----


def describe_machine(device: "torch.device") -> dict[str, Any]:
    """What the figures depend on."""
    import cv2
    import numpy as np
    import torch

    content = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "the library's"),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
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
        }
    return content


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
