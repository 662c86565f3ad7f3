"""The loss part of `tool/parity.py`: the loss terms of a recorded batch, and the gradients of their sum."""

import copy
from argparse import Namespace
from contextlib import nullcontext
from math import isfinite

import msgspec
import numpy as np
import torch

from common.criterion import InterWildLoss
from common.devices import parse_devices
from common.errors import UserError
from common.types import Targets
from common.utils.files import make_folder, write_json
from data.dataset import to_device
from data.reading import read_json
from main.build import load_model
from main.config import Config
from main.model import InterWild
from tool.published.forward import Report, load_npz
from tool.published.official import targets_from_official

# Relative tolerances: ten times the published system's distance from itself, at least this.
LOSS_FLOOR, GRADIENT_FLOOR = 1e-5, 1e-4
ELEMENT_FLOOR = 1e-4  # of the largest element
MODES = {"bn_eval": False, "bn_train": True}  # whether batch norms are in training mode


class RecordedMode(msgspec.Struct):
    loss_mean: dict[str, float]
    grad_l2: dict[str, float]


class RecordedLoss(msgspec.Struct):
    """Of loss.json."""

    modes: dict[str, RecordedMode]


class Spread(msgspec.Struct):
    loss_rel: dict[str, float] = {}
    grad_rel: dict[str, float] = {}


class Tolerances(msgspec.Struct):
    """Of tolerance.json."""

    loss_mkldnn_off: dict[str, Spread] = {}


def run(args: Namespace) -> list[Report]:
    """Compute the losses, write `loss.json`, compare. `args` are those of `tool/parity.py`."""
    device = parse_devices(args.gpu)[0]
    recorded = read_json(args.golden / "loss.json", RecordedLoss).modes
    tolerance_file = args.golden / "tolerance.json"
    spreads = read_json(tolerance_file, Tolerances).loss_mkldnn_off if tolerance_file.exists() else {}
    detail_file = args.golden / "loss_detail.npz"
    details = load_npz(detail_file) if detail_file.exists() else {}

    model = load_model(args.snapshot, args.mano).model.to(device)
    weights = copy.deepcopy(model.state_dict())
    images, targets = read_batch(args.golden / "loss_batch.npz")
    images, targets = images.to(device), to_device(targets, device)
    results, reports = {}, []
    for mode, expected in recorded.items():
        if mode not in MODES:
            raise UserError(f"the recorded figures name a mode {mode!r}; there are: {', '.join(MODES)}")
        model.load_state_dict(weights)  # each time, as training mode changes the statistics
        model.train(MODES[mode])
        model.zero_grad()
        losses, gradients, elements = loss_and_gradients(model, images, targets, args.amp)
        results[mode] = {"loss_mean": losses, "grad_l2": gradients}
        spread = spreads.get(mode, Spread())
        reports += compare(f"{mode}/loss", expected.loss_mean, losses, spread.loss_rel, LOSS_FLOOR)
        reports += compare(f"{mode}/grad", expected.grad_l2, gradients, spread.grad_rel, GRADIENT_FLOOR)
        prefix = f"{mode}/loss/"
        recorded_elements = {k.removeprefix(prefix): v for k, v in details.items() if k.startswith(prefix)}
        reports += compare_elements(f"{mode}/elements", recorded_elements, elements, spread.loss_rel)
    make_folder(args.out)
    write_json(args.out / "loss.json", results)
    return reports


def read_batch(path) -> tuple[torch.Tensor, Targets]:
    """A recorded batch -> images (N, 3, H, W) in [0, 1], targets."""
    arrays = load_npz(path)
    groups = {
        group: {name.removeprefix(f"{group}/"): array for name, array in arrays.items() if name.startswith(f"{group}/")}
        for group in ("targets", "meta_info")
    }
    try:
        images = torch.from_numpy(arrays["img_u8"]).float() / 255
        return images, targets_from_official(groups["targets"], groups["meta_info"], Config().frames)
    except KeyError as error:
        raise UserError(f"{path} has no array {error}") from None


def loss_and_gradients(
    model: InterWild, images: torch.Tensor, targets: Targets, amp: str = "off"
) -> tuple[dict[str, float], dict[str, float], dict[str, np.ndarray]]:
    """One forward and one backward pass.

    Returns:
        The mean of each term, the Euclidean norm of the total's gradient in each part of the network, and the terms
        before the mean, (N, ...).
    """
    criterion = InterWildLoss(model.frames)
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    with torch.backends.cudnn.flags(allow_tf32=False):  # as in the forward part
        with torch.autocast(images.device.type, dtype) if dtype else nullcontext():
            prediction = model(images)
        elements = criterion.elementwise(prediction, targets)
        terms = criterion(prediction, targets)
        sum(terms.values()).backward()
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = name.split(".")[0]
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.double().square().sum())
    losses = {name: float(value.detach()) for name, value in terms.items()}
    gradients = {part: square**0.5 for part, square in squares.items()}
    return losses, gradients, {name: values.detach().float().cpu().numpy() for name, values in elements.items()}


def compare(
    group: str, recorded: dict[str, float], ours: dict[str, float], spread: dict[str, float], floor: float
) -> list[Report]:
    """Numbers of the same names, relative to the recorded."""
    if set(recorded) != set(ours):
        different = ", ".join(sorted(set(recorded) ^ set(ours)))
        raise UserError(f"{group}: recorded are {len(recorded)} figures, ours are {len(ours)}; differing: {different}")
    reports = []
    for name, expected in recorded.items():
        error, tolerance = abs(expected - ours[name]), max(10 * spread.get(name, 0.0), floor) * abs(expected)
        within = isfinite(error) and error <= tolerance
        reports.append(Report(f"{group}/{name}", error, error / max(abs(expected), 1e-30), tolerance, not within))
    return reports


def compare_elements(
    group: str, recorded: dict[str, np.ndarray], ours: dict[str, np.ndarray], spread: dict[str, float]
) -> list[Report]:
    """Terms before the mean; the recorded ones have both hands on one axis."""
    reports = []
    for name, expected in recorded.items():
        result = ours.get(name)
        if result is None or result.size != expected.size:
            raise UserError(f"{group}/{name}: recorded as {expected.shape}, ours is missing or of another size")
        scale = float(np.abs(expected).max())
        error = float(np.abs(expected - result.reshape(expected.shape)).max())
        tolerance = max(10 * spread.get(name, 0.0), ELEMENT_FLOOR) * scale
        within = isfinite(error) and error <= tolerance
        reports.append(Report(f"{group}/{name}", error, error / max(scale, 1e-30), tolerance, not within))
    return reports
