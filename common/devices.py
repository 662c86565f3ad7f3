"""The devices to run on, from the text of `--gpu`."""

import re

import torch

from common.errors import UserError


def parse_devices(text: str | None) -> list[torch.device]:
    """'0', '0-3', '0,2', 'cpu' or None (all CUDA GPUs, else the CPU) -> devices.

    Raises:
        UserError: another form, or a GPU that this machine does not have.
    """
    count = torch.cuda.device_count()
    if text is None:
        return [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]
    if text.strip().lower() == "cpu":
        return [torch.device("cpu")]
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--gpu {text!r} is not understood; write e.g. 0, 0-3, 0,2 or cpu")
        indices += range(int(match[1]), int(match[2] or match[1]) + 1)
    unknown = sorted({index for index in indices if index >= count})
    if unknown:
        have = f"GPUs 0 to {count - 1}" if count else "no CUDA GPU that PyTorch can use"
        names = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise UserError(f"--gpu {text}: there is no GPU {names}; this machine has {have}; --gpu cpu works everywhere")
    return [torch.device("cuda", index) for index in dict.fromkeys(indices)]
