"""Mixed precision: the network runs in the precision that `Config.amp` names, geometry always in float32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
P = ParamSpec("P")
R = TypeVar("R")


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """The context in which the network runs; a key of `AMP_DTYPES` names its precision."""
    dtype = AMP_DTYPES[amp]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


class AutocastModule(nn.Module):
    """Calls a module in the precision that a key of `AMP_DTYPES` names.

    For modules inside `DataParallel`: its threads know whether autocast is on outside, but not in which precision.
    """

    def __init__(self, module: nn.Module, amp: str) -> None:
        super().__init__()
        self.module, self.amp = module, amp

    def forward(self, images: Tensor) -> Any:
        """(N, 3, H, W) -> what the module returns."""
        with autocast(images.device, self.amp):
            return self.module(images)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors: it runs without autocast, and its half-precision arguments become float32.

    bfloat16 has steps of 2 pixels at 512, and float16 overflows at 65504. float64 stays float64.
    """

    @wraps(function)
    def in_full_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(_device_type(args), enabled=False):
            return function(*_to_float(args), **_to_float(kwargs))

    return in_full_precision


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays, so that a network in float64 computes in it throughout."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _device_type(arguments: Any) -> str:
    for value in arguments:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
            return value[0].device.type
    return "cpu"


def _to_float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return at_least_float32(value)
    if isinstance(value, dict):
        return {key: _to_float(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_to_float(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
