"""Tools that break inputs and processes on purpose."""

import os

from common.distributed import usable_cores


def patience(seconds: float) -> float:
    """How long to wait here for what takes at most `seconds` on an idle machine: longer while its cores are busy."""
    return seconds * max(1.0, os.getloadavg()[0] / usable_cores())
