"""The loss part of `tool/parity.py`: the loss terms of a recorded batch, and the gradients of their sum."""

import copy
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from common.criterion import InterWildLoss
from common.errors import UserError
from common.precision import autocast
from common.types import Targets
from common.utils.files import make_folder, write_json
from data.dataset import to_device
from data.reading import read_json
from main.build import load_model
from main.config import Config
from main.model import InterWild
from tool.published.comparison import LossSpread, Report, compare, largest, load_npz, read_spreads
from tool.published.official import targets_from_official

# Tolerances relative to the largest number: ten times the published system's distance from itself, at least this.
LOSS_FLOOR, GRADIENT_FLOOR, ELEMENT_FLOOR = 1e-5, 1e-4, 1e-4
MODES = {"bn_eval": False, "bn_train": True}  # whether batch norms are in training mode


class RecordedMode(msgspec.Struct):
    loss_mean: dict[str, float]
    grad_l2: dict[str, float]


class RecordedLoss(msgspec.Struct):
    """Of loss.json."""

    modes: dict[str, RecordedMode]


def run(args: Namespace) -> list[Report]:
    """Compute the losses, write `loss.json`, compare. `args` are those of `tool/parity.py`."""
    recorded = read_json(args.golden / "loss.json", RecordedLoss).modes
    spreads = read_spreads(args.golden).loss_mkldnn_off
    detail_file = args.golden / "loss_detail.npz"
    details = load_npz(detail_file) if detail_file.exists() else {}

    model = load_model(args.checkpoint, args.mano).model.to(args.device)
    weights = copy.deepcopy(model.state_dict())
    images, targets = read_batch(args.golden / "loss_batch.npz")
    images, targets = images.to(args.device), to_device(targets, args.device)
    results, reports = {}, []
    for mode, expected in recorded.items():
        if mode not in MODES:
            raise UserError(f"the recorded results name a mode {mode!r}; there are: {', '.join(MODES)}")
        model.load_state_dict(weights)  # training mode changes the statistics
        model.train(MODES[mode])
        model.zero_grad()
        losses, gradients, elements = loss_and_gradients(model, images, targets, args)
        results[mode] = {"loss_mean": losses, "grad_l2": gradients}
        spread, prefix = spreads.get(mode, LossSpread()), f"{mode}/loss/"
        reports += compare_group(f"{mode}/loss", expected.loss_mean, losses, spread.loss_rel, LOSS_FLOOR)
        reports += compare_group(f"{mode}/grad", expected.grad_l2, gradients, spread.grad_rel, GRADIENT_FLOOR)
        terms = {name.removeprefix(prefix): x for name, x in details.items() if name.startswith(prefix)}
        # The recorded terms have both hands on one axis.
        elements = {k: x.reshape(terms[k].shape) for k, x in elements.items() if k in terms and terms[k].size == x.size}
        reports += compare_group(f"{mode}/elements", terms, elements, spread.loss_rel, ELEMENT_FLOOR)
    make_folder(args.output)
    write_json(args.output / "loss.json", results)
    return reports


def read_batch(path: Path) -> tuple[torch.Tensor, Targets]:
    """A recorded batch: images (N, 3, H, W) in [0, 1], targets. Raises UserError if an array is missing."""
    arrays = load_npz(path)
    try:
        images = torch.from_numpy(arrays["img_u8"]).float() / 255
        return images, targets_from_official(arrays, Config().frames)
    except KeyError as error:
        raise UserError(f"{path} has no array {error}") from None


def loss_and_gradients(
    model: InterWild, images: torch.Tensor, targets: Targets, args: Namespace
) -> tuple[dict[str, float], dict[str, float], dict[str, np.ndarray]]:
    """The mean of each term, the L2 norm of each top-level module's gradient, the terms before the mean."""
    criterion = InterWildLoss(model.frames)
    with autocast(args.device, args.amp):
        prediction = model(images)
    elements = criterion.elementwise(prediction, targets)
    terms = criterion(prediction, targets)
    sum(terms.values()).backward()
    squares: dict[str, float] = defaultdict(float)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares[name.split(".")[0]] += float(parameter.grad.double().square().sum())
    losses = {name: float(value.detach()) for name, value in terms.items()}
    gradients = {part: square**0.5 for part, square in squares.items()}
    return losses, gradients, {name: values.detach().float().cpu().numpy() for name, values in elements.items()}


def compare_group(
    group: str, recorded: dict[str, Any], ours: dict[str, Any], spread: dict[str, float], floor: float
) -> list[Report]:
    """Numbers or arrays of the same names, relative to the largest recorded number."""

    def allowed(name: str, expected: np.ndarray) -> float:
        return max(10 * spread.get(name, 0.0), floor) * largest(expected)

    return compare(f"{group}/", recorded, ours, allowed, strict=True)
