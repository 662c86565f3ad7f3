"""Mixed precision, by the names of `Config.amp`."""

from contextlib import AbstractContextManager, nullcontext

import torch

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """The context in which the network runs; a key of `AMP_DTYPES` names its precision."""
    dtype = AMP_DTYPES[amp]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
