"""What the parts of tool/parity.py share: reading recorded results, the hand models, the one comparison of arrays."""

import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from common.errors import error_context
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.utils.files import check_is_file
from common.utils.rotations import axis_angle_to_matrix
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


def compare(
    group: str,
    recorded: Mapping[str, Any],
    ours: Mapping[str, Any],
    allowed: Callable[[str, np.ndarray], Any],
    prepare: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values,
    strict: bool = False,
) -> list[Report]:
    """Compare recorded numbers or arrays with ours of the same names: |ours - recorded| <= allowed for each number.

    NaN and None stand for "none": they equal each other and nothing else.

    Args:
        group: the names of the reports begin with it.
        allowed: name, prepared recorded array -> tolerance of the array or of each of its numbers.
        prepare: name, array -> the array to compare, of both sides.
        strict: ours must have no other names.

    Raises:
        UserError: the names or the shapes differ.
    """
    different, reports = set(recorded) ^ set(ours) if strict else set(recorded) - set(ours), []
    with error_context(group.rstrip("/"), ValueError):
        if different:
            raise ValueError(f"recorded and computed names are not the same; differing: {', '.join(sorted(different))}")
        for name, expected in recorded.items():
            a, b = np.asarray(expected, np.float64), np.asarray(ours[name], np.float64)
            if a.shape != b.shape:
                raise ValueError(f"{name} is recorded as {a.shape}, ours is {b.shape}")
            a, b = prepare(name, a), prepare(name, b)
            tolerance = allowed(name, a)
            with np.errstate(invalid="ignore"):
                error = np.where(np.isnan(a) & np.isnan(b), 0, np.nan_to_num(np.abs(b - a), nan=np.inf, posinf=np.inf))
            worst, outside = float(error.max(initial=0)), bool((error > tolerance).any())
            reports.append(Report(group + name, worst, worst / max(largest(a), 1e-30), np.min(tolerance), outside))
    return reports


def largest(values: np.ndarray) -> float:
    """The largest absolute value, without NaN."""
    return float(np.abs(np.nan_to_num(values)).max(initial=0))


def rotation_matrices(vectors: np.ndarray) -> np.ndarray:
    """(N, 3 K) axis-angle -> (N, K, 3, 3): the two vectors of a half turn are one rotation."""
    return axis_angle_to_matrix(torch.from_numpy(vectors).double().unflatten(-1, (-1, 3))).numpy()
