"""Test a trained network. To be run in main/:

    python test.py --gpu 0-3 --test_epoch 6                        # output/model_dump/snapshot_6.pth on the set of
    python test.py --gpu 0-3 --test_epoch 6 --testset MSCOCO       # main/config.py, or on another
    python test.py --checkpoint ../demo/snapshot_6.pth             # any checkpoint, a published one, too
    python test.py --test_epoch 6 --testset ReInterHand --cam_mode Ego_cameras
    python test.py --test_epoch 6 --visualize 8                    # and pictures
    torchrun --nproc_per_node 4 test.py --test_epoch 6             # on one machine or several

Prints the figures in the published wording. Written under output/result, or below --output:

    {testset}_{epoch}.json         the figures, with how many items each averages
    {testset}_{epoch}.csv          one line a sample: errors in mm, IoU in percent, empty where nothing is to be scored
    with --visualize N:
    {testset}_{epoch}_samples.jpg  N samples: truth, prediction, predicted meshes
    {testset}_{epoch}_worst.jpg    the N worst
    {testset}_{epoch}_errors.png   histograms of the errors

Every sample is evaluated once, on any number of GPUs. The same checkpoint gives the same figures each time.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.errors import UserError, run_main  # noqa: E402
from common.options import GPU_HELP, MANO_FOLDER  # noqa: E402
from main.config import Config  # noqa: E402
from main.options import add_config_options, config_of_checkpoint, read_config  # noqa: E402

if TYPE_CHECKING:
    import numpy as np
    import torch

    from common.distributed import ProcessInfo
    from common.metrics import Evaluator
    from common.types import EvalSample, Prediction
    from data.dataset import HandDataset
    from main.model import InterWild

# What belongs to the network and not to the test: the checkpoint decides.
NETWORK = ("body_backbone", "hand_backbone", "trans_backbone", "box_channels", "frames", "hand_box_extension")
# Beginning of a column's name in the .csv -> what pictures call it.
COLUMNS = {"mpvpe": "MPVPE", "mpjpe": "MPJPE", "mrrpe": "MRRPE", "rrve": "RRVE", "box_iou": "bbox IoU"}


def main() -> int:
    args = parse_args()
    from common.devices import parse_devices
    from common.distributed import launch

    return launch(partial(run, args), parse_devices(args.gpu))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", help=GPU_HELP)
    parser.add_argument("--test_epoch", type=int, metavar="N", help="test snapshot_N.pth in model_dump below --output")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="test this file instead")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the datasets (default: data)")
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help="folder of MANO_RIGHT.pkl and MANO_LEFT.pkl")
    parser.add_argument("--batch_size", dest="config_test_batch_size", metavar="N", help="samples at once on one GPU")
    parser.add_argument("--visualize", type=int, default=0, metavar="N", help="draw N samples and the N worst")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder (default: output)")
    add_config_options(parser, presets=False)
    args = parser.parse_args()
    if args.test_epoch is None and args.checkpoint is None:
        parser.error("which network? name its epoch with --test_epoch, or its file with --checkpoint")
    if args.visualize < 0:
        parser.error("--visualize must not be below 0")
    return args


def run(args: argparse.Namespace, place: "ProcessInfo") -> None:
    """The test, in one of the processes that share it."""
    from common.distributed import from_all, main_first
    from common.metrics import PROTOCOLS, Evaluator
    from common.utils.files import make_folder
    from common.utils.images import quiet_opencv
    from data.dataset import open_dataset
    from main.model import prepare_inference

    quiet_opencv()
    path = args.checkpoint or args.output / "model_dump" / f"snapshot_{args.test_epoch}.pth"
    model, config, epoch = load(path, args)
    if args.test_epoch is not None:
        epoch = args.test_epoch
    model = prepare_inference(model, place.device)
    with main_first(place):  # the annotation cache is built once
        dataset = open_dataset(config.testset, "test", config, args.data)
    folder = args.output / "result"
    if place.is_main:
        make_folder(folder)
        print(f"{path} on {len(dataset)} samples of {config.testset}; hand model: {model.mano_layer.name}", flush=True)

    evaluator = Evaluator(PROTOCOLS[config.testset], model.mano_layer)
    evaluate(model, dataset, range(place.rank, len(dataset), place.world), config, place, evaluator)
    states = from_all(evaluator.state(), place)
    if not place.is_main:
        return
    whole = Evaluator(evaluator.protocol, model.mano_layer)
    whole.merge(states)
    print(whole.summary())
    stem = folder / f"{config.testset}_{epoch}"
    write_figures(stem, whole, dataset, {"checkpoint": str(path), "epoch": epoch, "hand_model": model.mano_layer.name})
    if args.visualize:
        draw(stem, whole, model, dataset, config, args.visualize, place.device)
    print(f"results are in {stem}.*")


def load(path: Path, args: argparse.Namespace) -> tuple["InterWild", Config, int]:
    """The network of a checkpoint, the configuration of the test, the epoch that the checkpoint is of.

    Raises:
        UserError: a file is missing, damaged, or does not fit.
    """
    from dataclasses import replace

    from common.checkpoint import load_network, read_checkpoint
    from common.nets.mano import TwoHandMano
    from common.nets.mano_files import read_hand_models
    from main.model import build_model

    hands = read_hand_models(args.mano)
    content = read_checkpoint(path)
    trained = config_of_checkpoint(content, path) or Config()  # a published file has none
    config = read_config(args, replace(Config(), **{name: getattr(trained, name) for name in NETWORK}))
    model = build_model(config, TwoHandMano(*hands))
    load_network(model, content["network"], path)
    epoch = content.get("epoch", 0)
    return model, config, epoch if isinstance(epoch, int) and 0 <= epoch < 10**9 else 0


def evaluate(
    model: "InterWild",
    dataset: "HandDataset",
    indices: range,
    config: Config,
    place: "ProcessInfo",
    evaluator: "Evaluator",
) -> None:
    """Run the network on samples of a dataset, and add their errors to the evaluator. Shows the progress.

    Raises:
        UserError: a sample cannot be read, the network's answer is not finite, or memory does not suffice.
    """
    import torch
    from torch.utils.data import DataLoader, Subset
    from tqdm import tqdm

    from common.metrics import to_estimate
    from common.targets import complete_truth
    from data.dataset import init_worker, to_device, unwrap_worker_errors

    loader = DataLoader(
        Subset(dataset, indices),
        batch_size=config.test_batch_size,
        num_workers=worker_count(config, len(indices)),
        worker_init_fn=init_worker,
        pin_memory=place.device.type == "cuda",
    )
    share = f" (process 1 of {place.world})" if place.world > 1 else ""
    progress = tqdm(
        total=len(indices), desc=config.testset + share, unit="sample", disable=not place.is_main, dynamic_ncols=True
    )
    start = 0
    with progress, torch.inference_mode():
        for batch in unwrap_worker_errors(loader):
            batch = to_device(batch, place.device)
            prediction = predict(model, batch, config)
            estimate = to_estimate(prediction, batch.sample.crop_to_image, config.frames)
            check_finite(estimate, batch.sample.id)
            count = len(batch.sample.id)
            truth = complete_truth(batch, model.mano_layer)
            evaluator.update(indices[start : start + count], estimate, truth, batch.sample.joints_valid)
            start += count
            progress.update(count)


def worker_count(config: Config, samples: int) -> int:
    """Loader workers: as many as are wanted, there are cores for, and have a batch to make."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.num_thread, cores, -(-samples // config.test_batch_size))


def predict(model: "InterWild", batch: "EvalSample", config: Config) -> "Prediction":
    """Raises UserError if the device has too little memory."""
    from contextlib import nullcontext

    import torch

    from common.targets import build_images

    images = build_images(batch.sample)
    dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.amp]
    try:
        with torch.autocast(images.device.type, dtype) if dtype else nullcontext():
            return model(images)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{images.device} has too little memory for {len(images)} samples; lower --batch_size"
        ) from None


def check_finite(estimate: Any, ids: list[str]) -> None:
    """Raises UserError that names the first sample whose prediction is not finite: no average would mean anything."""
    for name, values in estimate._asdict().items():
        finite = values.isfinite().flatten(1).all(1)
        if not finite.all():
            sample = ids[int((~finite).nonzero()[0, 0])]
            raise UserError(f"the network's {name} of {sample} are NaN or infinite: this checkpoint cannot be tested")


# ---- Results ----


def write_figures(stem: Path, evaluator: "Evaluator", dataset: "HandDataset", about: dict[str, Any]) -> None:
    """{stem}.json and {stem}.csv."""
    import csv
    import io
    import math

    from common.types import HAND_TYPES
    from common.utils.files import atomic_write, write_json

    figures = evaluator.figures()
    content = {
        **about,
        "testset": dataset.source.name,
        "samples": len(evaluator),
        "units": "mm, IoU in percent",
        "metrics": {f.label: f.value for f in figures if f.published},
        "beyond_published": {f.label: f.value for f in figures if not f.published},
        "counts": {f.label: f.count for f in figures},
        "left_out": {f.label: f.left_out for f in figures if f.left_out},
    }
    write_json(stem.with_name(f"{stem.name}.json"), content)

    table = evaluator.table()
    names = [name for name in table if name not in ("index", "hand_type")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "hand_type", *names])
    for row, index in enumerate(table["index"].tolist()):
        kind = int(table["hand_type"][row])
        numbers = [float(table[name][row]) for name in names]
        shown = ["" if math.isnan(number) else f"{number:.4f}" for number in numbers]
        writer.writerow([dataset.id(index), HAND_TYPES[kind] if kind >= 0 else "", *shown])
    atomic_write(stem.with_name(f"{stem.name}.csv"), text.getvalue().encode())


def draw(
    stem: Path,
    evaluator: "Evaluator",
    model: "InterWild",
    dataset: "HandDataset",
    config: Config,
    count: int,
    device: "torch.device",
) -> None:
    """The pictures of --visualize: samples spread over the set, the worst, histograms."""
    import numpy as np

    from common.drawing.sheets import contact_sheet, histograms
    from common.utils.files import write_image

    table = evaluator.table()
    spread = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()
    for name, chosen in (("samples", spread), ("worst", evaluator.worst(count))):
        if not chosen:
            continue
        pictures = [draw_one(model, dataset, index, config, device) for index in chosen]
        captions = [caption(dataset.id(index), table, index) for index in chosen]
        write_image(stem.with_name(f"{stem.name}_{name}.jpg"), contact_sheet(pictures, captions))
    errors = {
        title: np.concatenate([values for name, values in table.items() if name.startswith(column)])
        for column, title in COLUMNS.items()
        if any(name.startswith(column) for name in table)
    }
    units = {title: "percent" if title == COLUMNS["box_iou"] else "mm" for title in errors}
    write_image(stem.with_name(f"{stem.name}_errors.png"), histograms(errors, units))


def draw_one(
    model: "InterWild", dataset: "HandDataset", index: int, config: Config, device: "torch.device"
) -> list["np.ndarray"]:
    """The crop of a sample three times: with the true boxes and joints, the predicted, and the predicted meshes."""
    import numpy as np
    import torch
    from torch.utils.data import default_collate

    from common.drawing.samples import Marks, draw_sample, read_prediction
    from data.dataset import to_device

    item = dataset[index]
    with torch.inference_mode():
        prediction = predict(model, to_device(default_collate([item]), device), config)
        said, meshes = read_prediction(prediction, model.mano_layer.faces, config.frames, together=True)[0]
    sample = item.sample
    boxes = np.where(sample.boxes_valid[:, None] > 0, sample.boxes_crop, np.nan)
    joints = np.where(sample.joints_valid[..., None] > 0, sample.joints_crop[..., :2], np.nan)
    return draw_sample(sample.crop.numpy(), Marks(boxes, np.ones(2), joints), said, meshes)[1:]


def caption(id: str, table: dict[str, "np.ndarray"], row: int) -> str:
    """A sample's id, and its errors of the right / the left hand."""
    import numpy as np

    parts = [id.rsplit("--", 1)[-1]]
    for column in ("box_iou", "mpvpe"):
        values = [values[row] for name, values in table.items() if name.startswith(column)]
        texts = ["-" if np.isnan(value) else f"{value:.0f}" for value in values]
        if texts:
            parts.append(f"{COLUMNS[column]} {'/'.join(texts)}")
    return "  ".join(parts)


if __name__ == "__main__":
    run_main(main)
