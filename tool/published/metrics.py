"""The metrics part of `tool/parity.py`: the evaluation of recorded predictions on the recorded datasets.

Written are the figures of the published evaluation under its labels. Where an average has no sample at all, or MPJPE
one joint without any, the published system prints NaN: there null is written, which equals NaN or null in the recorded
figures and nothing else. What this system itself reports of such an MPJPE, the joints without a sample left out, stands
under the label with " (joints without sample left out)" behind it.
"""

from argparse import Namespace
from math import isfinite, nan
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import torch
from torch.utils.data import default_collate
from tqdm import tqdm

from common.devices import parse_devices
from common.errors import UserError
from common.metrics import PROTOCOLS, Estimate, Evaluator, boxes_to_image
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.targets import complete_truth
from common.utils.files import make_folder, write_json
from common.utils.frames import Frames
from common.utils.joints import JOINTS
from data.dataset import HandDataset, to_device
from data.reading import read_json
from tool.published.datasets import Index, open_recorded, plain_id
from tool.published.forward import Report, load_npz

TOLERANCE, RELATIVE = 1e-3, 1e-5  # mm or percent; of the figure
REDUCED = " (joints without sample left out)"


class Recorded(msgspec.Struct):
    full: dict[str, float | None]  # label as printed -> value


class RecordedSet(msgspec.Struct):
    first: Recorded  # of two passes over the same data


def run(args: Namespace) -> list[Report]:
    """Evaluate, write `datasets/metrics.json`, compare. `args` are those of `tool/parity.py`."""
    device = parse_devices(args.gpu)[0]
    folder = args.golden / "datasets"
    recorded = read_json(folder / "metrics.json", dict[str, RecordedSet])
    order = read_json(folder / "index.json", Index).sets
    mano = TwoHandMano(*read_hand_models(args.mano)).to(device)
    written, reports = {}, []
    with TemporaryDirectory() as temporary:
        for name, expected in tqdm(recorded.items(), desc="metrics", leave=False):
            if name not in order:
                raise UserError(f"{folder / 'index.json'} has no set {name}, metrics.json has")
            dataset = open_recorded(name, args.golden / "data", Path(temporary))
            ids = {plain_id(dataset.source.id(i)): i for i in range(len(dataset))}
            wanted = [plain_id(id) for id in order[name].ids]
            absent = [id for id in wanted if id not in ids]
            if absent:
                raise UserError(f"{name}: sample {absent[0]} is recorded, ours has none of that id")
            prediction = load_npz(folder / f"{name}_pred.npz")
            evaluator = evaluate(dataset, [ids[id] for id in wanted], prediction, mano, device)
            written[name] = as_published(evaluator)
            reports += compare(name, expected.first.full, written[name])
    make_folder(args.out / "datasets")
    write_json(args.out / "datasets" / "metrics.json", written)
    return reports


def evaluate(
    dataset: HandDataset,
    indices: list[int],
    prediction: dict[str, np.ndarray],
    mano: TwoHandMano,
    device: torch.device,
) -> Evaluator:
    """The evaluation of predictions under the published names, whose rows belong to `indices`."""
    batch = to_device(default_collate([dataset[i] for i in indices]), device)
    evaluator = Evaluator(PROTOCOLS[dataset.source.name], mano)
    estimate = Estimate(*(x.to(device) for x in read_estimate(prediction, dataset.frames)))
    evaluator.update(indices, estimate, complete_truth(batch, mano), batch.sample.joints_valid)
    return evaluator


def read_estimate(prediction: dict[str, np.ndarray], frames: Frames) -> Estimate:
    """Predictions under the published names; what a dataset does not score may be missing and is 0 here."""
    boxes = torch.from_numpy(np.stack([prediction["rhand_bbox"], prediction["lhand_bbox"]], 1))
    count = len(boxes)

    def hands(name: str, points: int) -> torch.Tensor:
        arrays = [prediction.get(f"{side}{name}", np.zeros((count, points, 3), np.float32)) for side in "rl"]
        return torch.from_numpy(np.stack(arrays, 1))

    return Estimate(
        boxes_image=boxes_to_image(boxes, torch.from_numpy(prediction["bb2img_trans"]), frames),
        vertices_rel=hands("mano_mesh_cam", 778),
        joints_rel=hands("mano_joint_cam", len(JOINTS)),
        rel_transl=torch.from_numpy(prediction.get("rel_trans", np.zeros((count, 3), np.float32))),
    )


def as_published(evaluator: Evaluator) -> dict[str, float | None]:
    """The published figures; None where the published system prints NaN."""
    values = {}
    for figure in evaluator.figures():
        if figure.published:
            values[figure.label] = None if figure.left_out else figure.value
            if figure.left_out:
                values[figure.label + REDUCED] = figure.value
    return values


def compare(name: str, recorded: dict[str, float | None], ours: dict[str, float | None]) -> list[Report]:
    reports = []
    for label, expected in recorded.items():
        if label not in ours:
            raise UserError(f"{name}: {label!r} is recorded, ours has no such figure")
        result = ours[label]
        if expected is None or not isfinite(expected) or result is None:
            same = result is None and (expected is None or not isfinite(expected))
            reports.append(Report(f"{name}/{label}", 0.0 if same else nan, 0.0 if same else nan, 0.0, not same))
            continue
        error, tolerance = abs(expected - result), TOLERANCE + RELATIVE * abs(expected)
        within = isfinite(error) and error <= tolerance
        reports.append(Report(f"{name}/{label}", error, error / max(abs(expected), 1e-30), tolerance, not within))
    return reports
