"""What the parts of tool/parity.py share: reading recorded results, the network, and the one comparison of arrays."""

import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from common.errors import error_context
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.utils.files import check_is_file
from data.reading import read_json


class Report(NamedTuple):
    """One line of the result: the worst absolute error, the same over the largest recorded value, what is allowed."""

    name: str
    error: float
    relative: float
    tolerance: float
    outside: bool


class LossSpread(msgspec.Struct):
    loss_rel: dict[str, float] = {}
    grad_rel: dict[str, float] = {}


class Spreads(msgspec.Struct):
    """Of tolerance.json: how far the published system is from itself, in other runs."""

    forward: dict[str, dict[str, dict[str, float]]] = {}  # run -> tensor -> {max_abs, ...}
    loss_mkldnn_off: dict[str, LossSpread] = {}


def read_spreads(golden: Path) -> Spreads:
    """Empty if the folder has no tolerance.json."""
    path = golden / "tolerance.json"
    return read_json(path, Spreads) if path.exists() else Spreads()


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz of plain arrays. Raises UserError if it is missing, or not such a file."""
    with error_context(f"cannot read {path}", ValueError, EOFError, zipfile.BadZipFile):
        check_is_file(path)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)


def load_mano(args: Namespace) -> TwoHandMano:
    return TwoHandMano(*read_hand_models(args.mano)).to(args.device)


def autocast(args: Namespace) -> torch.autocast:
    """Mixed precision as `--amp` asks for it."""
    dtype = torch.float16 if args.amp == "fp16" else torch.bfloat16
    return torch.autocast(args.device.type, dtype, enabled=args.amp != "off")


def pairs(
    group: str, recorded: Mapping[str, Any], ours: Mapping[str, Any], strict: bool = False
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, recorded and computed array of each recorded name.

    Args:
        strict: nothing else may have been computed.

    Raises:
        UserError: the names or the shapes differ.
    """
    different = set(recorded) ^ set(ours) if strict else set(recorded) - set(ours)
    with error_context(group, ValueError):
        if different:
            raise ValueError(f"recorded and computed names are not the same; differing: {', '.join(sorted(different))}")
        for name, expected in recorded.items():
            expected, result = np.asarray(expected, np.float64), np.asarray(ours[name], np.float64)
            if expected.shape != result.shape:
                raise ValueError(f"{name} is recorded as {expected.shape}, ours is {result.shape}")
            yield name, expected, result


def compare(name: str, expected: np.ndarray, result: np.ndarray, tolerance: float, relative: float = 0.0) -> Report:
    """Compare two arrays of a shape: |result - expected| <= tolerance + relative |expected| for each number.

    NaN stands for "none": it equals NaN and nothing else.
    """
    with np.errstate(invalid="ignore"):
        difference = np.abs(result - expected)
    difference = np.where(np.isnan(difference), np.where(np.isnan(expected) & np.isnan(result), 0, np.inf), difference)
    magnitude = np.abs(np.nan_to_num(expected))
    error, largest = float(difference.max(initial=0)), float(magnitude.max(initial=0))
    outside = bool((difference - relative * magnitude > tolerance).any())
    return Report(name, error, error / max(largest, 1e-30), tolerance, outside)


def largest(values: np.ndarray) -> float:
    """The largest absolute value."""
    return float(np.abs(values).max(initial=0))
