"""Geometry stays float32 where the network around it runs in mixed precision."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
HALF = (torch.float16, torch.bfloat16)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A function of tensors, run without autocast and with its half-precision arguments as float32.

    bfloat16 resolves 2 of 512 pixels, and a scale above 65504 overflows float16. float64 stays float64.
    """

    @wraps(function)
    def in_full_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(_device_type(args), enabled=False):
            return function(*_to_float(args), **_to_float(kwargs))

    return in_full_precision


def _device_type(arguments: Any) -> str:
    for value in arguments:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
            return value[0].device.type
    return "cpu"


def _to_float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, dict):
        return {key: _to_float(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_to_float(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
