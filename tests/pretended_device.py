"""An Apple GPU, pretended: it computes on the CPU, and refuses float64 and what needs tensors of two devices.

Its tensors hold one of the CPU. PyTorch without such hardware cannot make them, so for PyTorch they lie on `meta`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, STAND_IN = torch.device("mps"), torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
DOUBLE = (torch.float64, torch.complex128)


class Refused(AssertionError):
    """What the real device could not do."""


class OnDevice(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        if held.dtype in DOUBLE:
            raise Refused("float64 on the device")
        with torch.inference_mode(False):  # made in that mode it has no version, which some operations want
            tensor = Tensor._make_wrapper_subclass(
                cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=STAND_IN
            )
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Refused(f"{function} outside of `apple_gpu`")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"


class _Names(TorchFunctionMode):
    """`mps` becomes the device that PyTorch knows."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def known(value: Any) -> Any:
            named = value.type if isinstance(value, torch.device) else value
            return STAND_IN if isinstance(named, str) and named == DEVICE.type else value

        if function is torch.device:
            return function(*args, **kwargs or {})
        if function is Tensor.tolist and isinstance(args[0], OnDevice):  # PyTorch has it for plain tensors alone
            return args[0].held.tolist()
        if function is torch.as_tensor and isinstance(args[0], OnDevice) and not kwargs:
            return args[0]
        named, given = tree_map(known, tuple(args)), tree_map(known, kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and given.get("device") == STAND_IN:  # modes do not see its copy
            return function(*named, **given | {"device": "cpu"}).to(STAND_IN)
        return function(*named, **given)


class _Computes(TorchDispatchMode):
    """Each operation runs on the held tensors; its result lies where the real one would."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        if there and function not in COPIES and any(x.dim() for x in tensors if not isinstance(x, OnDevice)):
            raise Refused(f"{function} on tensors of two devices")
        result_there = bool(there)
        if kwargs.get("device") is not None:
            result_there = torch.device(kwargs["device"]).type in (DEVICE.type, STAND_IN.type)
            kwargs["device"] = torch.device("cpu")
        assert all(isinstance(x, OnDevice) or x.device.type == "cpu" for x in tensors), f"{function} has lost its data"
        held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
        result = function(*held_args, **held_kwargs)
        if function is torch.ops.aten.copy_.default:
            return args[0]
        if not result_there:
            return result
        self.operations.add(str(function))
        changed = {id(tensor.held): tensor for tensor in there}  # in place: the result is the argument

        def lift(value: Any) -> Any:
            if id(value) in changed:
                return changed[id(value)]
            return OnDevice(value) if isinstance(value, Tensor) else value

        try:
            return tree_map(lift, result)
        except Refused as refused:
            raise Refused(f"{function}: {refused}") from None


@contextmanager
def apple_gpu() -> Iterator[set[str]]:
    """Within it the device exists. Yields the names of the operations that ran on it."""
    with _Computes() as computes, _Names():
        yield computes.operations
