"""`--profile` of tool/benchmark.py: the slowest parts of inference and of a training step, by module and operator."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

DEPTH = 2  # names of modules down to body_backbone.layer1; `.backbone` does not count
MARK = "part: "
BACKWARD_NODE = "autograd::engine::evaluate_function"
OPERATORS = 12


@contextmanager
def named_modules(model: nn.Module) -> Iterator[None]:
    """Within the block, a profile knows which module of `model` is running."""
    open_ranges: list[record_function] = []
    handles = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            open_ranges.append(record_function(MARK + name))
            open_ranges[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    for name, module in model.named_modules():
        if name and name.replace(".backbone", "").count(".") < DEPTH:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_profile(function: Callable[[], object], model: nn.Module, device: torch.device) -> dict[str, Any]:
    """The time of one call in ms by module (forward and backward) and by operator, the largest first."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    with named_modules(model):
        function()
        with profile(activities=activities) as profiler:
            function()
            if on_gpu:
                torch.cuda.synchronize(device)
    # `key_averages` sums by operator. It cannot say which module's backward pass an operator belongs to: that takes
    # the sequence number, which an operator of the forward pass shares with its node of the backward pass.
    modules: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    owners: dict[int, str] = {}
    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    nodes = [_enclosing(event, BACKWARD_NODE) for event in events]
    for event, node in zip(events, nodes, strict=True):
        if node is None:
            range_ = _enclosing(event, MARK)
            owner = range_.name.removeprefix(MARK) if range_ else "(between modules)"
            modules[owner]["forward"] += getattr(event, time) / 1000
            if event.sequence_nr >= 0:
                owners.setdefault(event.sequence_nr, owner)
    for event, node in zip(events, nodes, strict=True):
        if node is not None:
            modules[owners.get(node.sequence_nr, "?")]["backward"] += getattr(event, time) / 1000
    operators = {row.key: getattr(row, time) / 1000 for row in profiler.key_averages() if not row.key.startswith(MARK)}
    return {
        "modules_ms": dict(sorted(modules.items(), key=lambda item: -sum(item[1].values()))),
        "operators_ms": dict(sorted(operators.items(), key=lambda item: -item[1])[:OPERATORS]),
    }


def _enclosing(event: Any, name: str) -> Any:
    """The innermost event around this one, or itself, whose name begins so; None if there is none."""
    while event is not None and not event.name.startswith(name):
        event = event.cpu_parent
    return event


def profile_table(title: str, found: dict[str, Any]) -> str:
    """The profile as text, without modules that take less than half a percent."""
    rows = found["modules_ms"]
    total = sum(sum(part.values()) for part in rows.values()) or 1.0
    lines = [f"{title}: {total:.0f} ms", f"  {'part':36s} {'forward ms':>11s} {'backward ms':>12s} {'share':>7s}"]
    for name, part in rows.items():
        share = sum(part.values()) / total
        if share > 0.005:
            lines.append(f"  {name:36s} {part['forward']:11.1f} {part['backward']:12.1f} {share:7.1%}")
    lines.append("  slowest operators: " + ", ".join(f"{k} {v:.0f} ms" for k, v in found["operators_ms"].items()))
    return "\n".join(lines)
