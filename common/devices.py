"""The devices to run on, from the text of `--gpu`."""

import re
import warnings

import torch

from common.errors import UserError


def parse_devices(text: str | None) -> list[torch.device]:
    """'0', '0-3', '0,2', 'cpu', 'mps' or None (all CUDA GPUs, else the CPU) -> devices. 'cpu' makes no CUDA call.

    Raises:
        UserError: another form, a GPU that this machine does not have, or GPUs that PyTorch cannot use.
    """
    if text is not None and text.strip().lower() == "cpu":
        return [torch.device("cpu")]
    if text is not None and text.strip().lower() == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--gpu mps: PyTorch finds no Apple GPU here (MPS); --gpu cpu works everywhere")
        return [torch.device("mps")]
    count, problem = _usable_gpus()
    if text is None:
        if problem:
            raise UserError(f"PyTorch cannot use the GPUs of this machine: {problem}; --gpu cpu works everywhere")
        return [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--gpu {text!r} is not understood; write e.g. 0, 0-3, 0,2, cpu or mps")
        indices += range(int(match[1]), int(match[2] or match[1]) + 1)
    unknown = sorted({index for index in indices if index >= count})
    if unknown:
        have = f"GPUs 0 to {count - 1}" if count else "no CUDA GPU that PyTorch can use"
        have += f" ({problem})" if problem else ""
        names = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise UserError(f"--gpu {text}: there is no GPU {names}; this machine has {have}; --gpu cpu works everywhere")
    return [torch.device("cuda", index) for index in dict.fromkeys(indices)]


def _usable_gpus() -> tuple[int, str]:
    """The number of GPUs that PyTorch can use; and if there are only others, why, e.g. that their driver is too old."""
    with warnings.catch_warnings(record=True) as caught:  # how PyTorch says why
        warnings.simplefilter("always")
        count, usable = torch.cuda.device_count(), torch.cuda.is_available()
    if usable or not (count or caught):
        return count, ""
    reasons = [str(warning.message).partition("\n")[0].partition(" (Triggered internally")[0] for warning in caught]
    return 0, reasons[-1] if reasons else f"CUDA does not start, though there are {count}"
