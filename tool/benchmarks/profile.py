"""`--profile` of tool/benchmark.py: the slowest parts of inference and of a training step, by the network's modules."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

DEPTH = 2  # names of modules down to body_backbone.layer1; `.backbone` does not count
MARK = "part: "
OPERATORS = 12


@contextmanager
def named_modules(model: nn.Module, depth: int = DEPTH) -> Iterator[None]:
    """Within the block, a profile knows which module of `model` is running."""
    open_ranges: list[record_function] = []
    handles = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*unused: Any) -> None:
            open_ranges.append(record_function(MARK + name))
            open_ranges[-1].__enter__()

        return hook

    def leave(*unused: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    for name, module in model.named_modules():
        if name and name.replace(".backbone", "").count(".") < depth:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_profile(function: Callable[[], object], model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Where the time of one call goes: by module (forward and backward) and by operator, ms, the largest first."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with named_modules(model):
        function()
        with profile(activities=activities) as found:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    events = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CPU]
    own = (lambda e: e.self_device_time_total) if device.type == "cuda" else (lambda e: e.self_cpu_time_total)
    forward, backward, operators = defaultdict(float), defaultdict(float), defaultdict(float)
    owner_of_sequence = {}
    for event in events:
        owner = _owner(event)
        backwards = _backward_node(event)
        if backwards is None and event.sequence_nr >= 0:
            owner_of_sequence.setdefault(event.sequence_nr, owner)
    for event in events:
        node = _backward_node(event)
        time = own(event) / 1000
        if node is None:
            forward[_owner(event)] += time
        else:
            backward[owner_of_sequence.get(node.sequence_nr, "?")] += time
        operators[MARK if event.name.startswith(MARK) else event.name] += time
    operators.pop(MARK, None)
    return {
        "modules_ms": {
            name: {"forward": forward.get(name, 0.0), "backward": backward.get(name, 0.0)}
            for name in sorted({*forward, *backward}, key=lambda name: -(forward[name] + backward[name]))
        },
        "operators_ms": dict(sorted(operators.items(), key=lambda item: -item[1])[:OPERATORS]),
    }


def _owner(event: Any) -> str:
    """The innermost module that an operator ran in."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        event = event.cpu_parent
    return "(between modules)"


def _backward_node(event: Any) -> Any:
    """The step of the backward pass that an operator belongs to, or None in the forward pass."""
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return event
        event = event.cpu_parent
    return None


def profile_table(title: str, found: dict[str, Any]) -> str:
    """The profile as text, without what takes less than half a percent."""
    rows = found["modules_ms"]
    total = sum(part["forward"] + part["backward"] for part in rows.values()) or 1.0
    lines = [f"{title}: {total:.0f} ms", f"  {'part':36s} {'forward ms':>11s} {'backward ms':>12s} {'share':>7s}"]
    for name, part in rows.items():
        both = part["forward"] + part["backward"]
        if both > 0.005 * total:
            lines.append(f"  {name:36s} {part['forward']:11.1f} {part['backward']:12.1f} {both / total:7.1%}")
    lines.append("  slowest operators: " + ", ".join(f"{k} {v:.0f} ms" for k, v in found["operators_ms"].items()))
    return "\n".join(lines)
