"""The metrics part of `tool/parity.py`: the evaluation of recorded predictions on the recorded datasets.

Written are the results of the published evaluation under its labels. Where an average has no sample at all, or MPJPE
one joint without any, the published system prints NaN: there null is written, which equals NaN or null in the recorded
results and nothing else. What this system itself reports of such an MPJPE, which leaves out joints without a sample,
has " (joints without sample left out)" appended to its label.
"""

from argparse import Namespace
from math import inf, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import torch
from torch.utils.data import default_collate
from tqdm import tqdm

from common.errors import UserError
from common.metrics import PROTOCOLS, Estimate, Evaluator, boxes_to_image
from common.nets.mano import TwoHandMano
from common.targets import complete_truth
from common.utils.files import make_folder, write_json
from common.utils.frames import Frames
from common.utils.joints import JOINTS
from data.dataset import HandDataset, to_device
from data.reading import read_json
from tool.published.comparison import Report, compare, largest, load_mano, load_npz
from tool.published.datasets import Index, open_recorded, plain_id

TOLERANCE, RELATIVE = 1e-3, 1e-5  # mm or percent; of the recorded result
REDUCED = " (joints without sample left out)"


class Recorded(msgspec.Struct):
    full: dict[str, float | None]  # label as printed -> value


class RecordedSet(msgspec.Struct):
    first: Recorded  # of two passes over the same data


def run(args: Namespace) -> list[Report]:
    """Evaluate, write `datasets/metrics.json`, compare. `args` are those of `tool/parity.py`."""
    folder = args.golden / "datasets"
    recorded = read_json(folder / "metrics.json", dict[str, RecordedSet])
    order = read_json(folder / "index.json", Index).sets
    mano = load_mano(args)
    written, reports = {}, []
    with TemporaryDirectory() as cache:
        for name, expected in tqdm(recorded.items(), desc="metrics", leave=False):
            if name not in order:
                raise UserError(f"{folder / 'index.json'} has no set {name}, metrics.json has")
            dataset = open_recorded(name, args.golden / "data", Path(cache))
            ids = {plain_id(dataset.source.id(i)): i for i in range(len(dataset))}
            expected_ids = [plain_id(id) for id in order[name].ids]
            if absent := [id for id in expected_ids if id not in ids]:
                raise UserError(f"{name}: sample {absent[0]} is recorded, ours has none of that id")
            prediction = load_npz(folder / f"{name}_pred.npz")
            evaluator = evaluate(dataset, [ids[id] for id in expected_ids], prediction, mano, args.device)
            written[name] = as_published(evaluator)
            reports += compare_labels(name, expected.first.full, written[name])
    make_folder(args.output / "datasets")
    write_json(args.output / "datasets" / "metrics.json", written)
    return reports


def evaluate(
    dataset: HandDataset, indices: list[int], prediction: dict[str, np.ndarray], mano: TwoHandMano, device: torch.device
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
        box_scores=torch.zeros(count, 2),
    )


def as_published(evaluator: Evaluator) -> dict[str, float | None]:
    """The published results; None where the published system prints NaN."""
    values = {}
    for result in evaluator.results():
        if result.published:
            values[result.label] = None if result.left_out else result.value
            if result.left_out:
                values[result.label + REDUCED] = result.value
    return values


def compare_labels(set_name: str, recorded: dict[str, float | None], ours: dict[str, float | None]) -> list[Report]:
    """None, NaN and infinity of the recorded results are the published system's NaN; ours is None there."""
    recorded = {label: x if x is not None and isfinite(x) else None for label, x in recorded.items()}
    ours = {label: x if x is None or isfinite(x) else inf for label, x in ours.items()}
    return compare(f"{set_name}/", recorded, ours, lambda label, expected: TOLERANCE + RELATIVE * largest(expected))
